"""One validated config: what is refused and in which words, the paper's defaults, and the name of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kgdistil
from kgdistil.config import LOSSES, RunConfig, check_device, make_config, read_config
from kgdistil.errors import ConfigError, DeviceError
from kgdistil.models import MODELS, build_model

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, so cuda is no mistake")
PAPER = {  # section 4.1: gamma, negatives, penalty (C), loss
    "TransE": (1.0, 5, 0.0, "margin"),
    "TransH": (0.5, 5, 0.0625, "margin"),
    "ComplEx": (0.0, 25, 0.0, "cross-entropy"),
    "RotatE": (6.0, 25, 0.0, "cross-entropy"),
    "DistMult": (0.0, 25, 0.0, "cross-entropy"),
    "SimplE": (0.0, 25, 0.0, "cross-entropy"),
    "ReciprocalComplEx": (0.0, 25, 0.0, "cross-entropy"),
}
OTHER = {  # for each field a value that is not the default
    "dataset": "nations",
    "model": "TransE",
    "dim": 16,
    "role": "teacher",
    "seed": 1,
    "protocol": "mine",
    "norm": 2,
    "loss": "margin",
    "gamma": 5.0,
    "group": 4,
    "depth": 2,
    "spread": True,
    "rank": 6,
    "shared": 1.0,
    "accumulator": 1e-6,
    "accumulators": "row",
    "top": 16,
    "answers": 100,
    "epsilon": 1.0,
    "negatives": 24,
    "weighting": "mean",
    "temperature": 0.5,
    "penalty": 0.5,
    "alpha": 0.3,
    "alpha_last": 0.0,
    "beta": 0.7,
    "lr": 0.01,
    "teacher_lr": 0.01,
    "schedule": "linear",
    "batch_size": 512,
    "epochs": 999,
    "check_every": 5,
    "patience": 0,
    "regulariser": "dura",
    "relation_weight": 0.25,
    "unlabelled": 0.5,
    "whole": 7,
    "check_sample": 500,
    "final_sample": 2000,
    "test_curve": True,
    "teacher": "x",
    "student": "y",
    "device": "cuda",
}
FITTING = {  # what a field needs beside it
    "penalty": {"model": "ComplEx"},
    "temperature": {"weighting": "self-adversarial"},
    "alpha": {"role": "stage1", "teacher": "x"},
    "beta": {"role": "stage2", "teacher": "x"},
    "teacher_lr": {"role": "stage2", "teacher": "x"},
    "shared": {"loss": "softmax", "group": 4},
    "depth": {"loss": "softmax", "group": 4},
    "spread": {"model": "ComplEx", "loss": "softmax", "group": 8, "depth": 4},
    "whole": {"model": "ComplEx", "loss": "softmax", "group": 4},
    "group": {"loss": "softmax"},
    "rank": {"model": "ComplEx", "loss": "softmax"},
    "accumulator": {"loss": "softmax"},
    "regulariser": {"model": "ComplEx", "loss": "softmax"},
    "relation_weight": {"model": "ComplEx", "loss": "softmax"},
    "accumulators": {"loss": "softmax"},
    "answers": {"loss": "softmax"},
    "top": {"loss": "softmax", "role": "stage1", "teacher": "x"},
    "unlabelled": {"loss": "softmax", "role": "stage1", "teacher": "x"},
    "alpha_last": {"loss": "softmax", "role": "stage1", "teacher": "x"},
    "teacher": {"role": "stage1", "teacher": "another"},
    "student": {"role": "stage2", "teacher": "x"},
}


# ---- defaults -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS)
def test_fields_left_out_are_the_papers(model: str) -> None:
    config = make_config(model=model)
    assert (config.gamma, config.negatives, config.penalty, config.loss) == PAPER[model]
    assert (config.norm, config.epsilon, config.batch_size, config.epochs) == (1, 2.0, 1024, 1000)
    assert config.weighting == "sum" and config.schedule == "plateau"


def test_none_means_left_out_and_given_values_win() -> None:
    assert make_config(model=None, gamma=None, dim=None, teacher=None) == make_config()
    config = make_config(model="TransH", gamma=2, penalty=0, negatives=7, loss="cross-entropy")
    assert (config.gamma, config.penalty, config.negatives, config.loss) == (2.0, 0.0, 7, "cross-entropy")


def test_names_of_models_and_known_graphs_are_taken_in_any_case() -> None:
    assert make_config(model="rotate", dataset="UMLS") == make_config(model="RotatE", dataset="umls")
    assert make_config(dataset="./UMLS").dataset == "./UMLS"  # a folder keeps its name


@pytest.mark.parametrize(
    "model, loss, offset",
    [("RotatE", None, 6.0), ("RotatE", "margin", 0.0), ("TransE", None, 0.0), ("ComplEx", None, 0.0)],
)
def test_gamma_is_in_the_score_only_for_a_distance_with_cross_entropy(model: str, loss: str, offset: float) -> None:
    config = make_config(model=model, loss=loss)
    assert config.model_options["offset"] == offset
    assert build_model(config.model, 5, 2, config.dim, **config.model_options).offset == offset


# ---- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values, line",
    [
        ({"dim": 0}, "dim is 0: input should be greater than or equal to 1"),
        ({"dim": -8}, "dim is -8: "),
        ({"dim": "eight"}, "dim is 'eight': input should be a valid integer"),
        ({"dim": 8.5}, "dim is 8.5: input should be a valid integer"),
        ({"dim": "8.5"}, "dim is '8.5': input should be a valid integer"),
        ({"dim": ""}, "dim is '': input should be a valid integer"),
        ({"dim": True}, "dim is True: it must be a number"),
        ({"dim": [8]}, "dim is [8]: input should be a valid integer"),
        ({"dim": 10**9}, "dim is 1000000000: input should be less than or equal to"),
        ({"dims": 8}, "unknown parameter dims (= 8): did you mean dim?"),
        ({"colour": "red"}, "unknown parameter colour (= 'red'): the parameters are dataset, model, dim,"),
        ({"model": "TransF"}, "model is 'TransF': choose one of TransE, TransH, ComplEx, RotatE, DistMult, SimplE"),
        ({"model": 3}, "model is 3: choose one of"),
        ({"lr": -0.1}, "lr is -0.1: input should be greater than 0"),
        ({"lr": 0}, "lr is 0: input should be greater than 0"),
        ({"lr": float("nan")}, "lr is nan: "),
        ({"lr": "nan"}, "lr is 'nan': "),
        ({"lr": float("inf")}, "lr is inf: "),
        ({"lr": "fast"}, "lr is 'fast': input should be a valid number"),
        ({"gamma": -1}, "gamma is -1: "),
        ({"gamma": float("nan")}, "gamma is nan: "),
        ({"epsilon": 0}, "epsilon is 0: "),
        ({"alpha": 1.5}, "alpha is 1.5: input should be less than or equal to 1"),
        ({"beta": -0.5}, "beta is -0.5: "),
        ({"seed": -1}, "seed is -1: "),
        ({"seed": 2**63}, "seed is 9223372036854775808: input should be less than"),
        ({"epochs": 0}, "epochs is 0: "),
        ({"epochs": "many"}, "epochs is 'many': "),
        ({"batch_size": 0}, "batch_size is 0: "),
        ({"batch_size": 2**26, "negatives": 2}, "batch_size × negatives is 134217728: at most"),
        ({"negatives": 0}, "negatives is 0: "),
        ({"check_every": 0}, "check_every is 0: "),
        ({"patience": -1}, "patience is -1: "),
        ({"norm": 3}, "norm is 3: "),
        ({"schedule": "step"}, "schedule is 'step': input should be 'plateau', 'linear', 'cosine' or 'constant'"),
        ({"loss": "hinge"}, "loss is 'hinge': choose one of margin, cross-entropy, softmax, dual"),
        ({"weighting": "max"}, "weighting is 'max': input should be "),
        ({"role": "Stage1"}, "role is 'Stage1': input should be 'teacher', 'no-ds', 'stage1' or 'stage2'"),
        ({"role": "stage1"}, "teacher is missing: stage1 needs a run id or the folder of a saved model"),
        ({"role": "stage2"}, "teacher is missing: stage2 needs"),
        ({"role": "stage1", "teacher": ""}, "teacher is '': "),
        ({"teacher": "x"}, "teacher is 'x', but no-ds trains without one"),
        ({"role": "teacher", "teacher": "x"}, "teacher is 'x', but teacher trains without one"),
        ({"student": "x"}, "student is 'x', but only stage 2 and loss softmax start"),
        ({"role": "stage1", "teacher": "x", "student": "y"}, "student is 'y', but only stage 2"),
        ({"penalty": 0.1}, "penalty is 0.1, but RotatE has no regulariser: set it to 0"),
        ({"group": 4}, "group is 4, but only loss softmax takes it: leave it out"),
        (
            {"loss": "softmax", "group": 8, "dim": 4, "depth": 2, "model": "ComplEx"},
            "depth is 2, but a group of 8 floats is all of an entity: choose 1",
        ),
        ({"loss": "softmax", "group": 8}, "group is 8, which takes several codes (depth 2, 4 or 8): choose 4, 2 or 1"),
        ({"loss": "softmax", "group": 16}, "group is 16, which takes several codes"),
        (
            {"loss": "softmax", "model": "ComplEx", "dim": 64, "group": 4, "depth": 8, "spread": True},
            "spread is for a dot product (ComplEx): it takes a depth of 4 or 8 (8), as large a group (4) or more",
        ),
        (
            {"loss": "softmax", "model": "SimplE", "dim": 12, "group": 8, "depth": 4, "spread": True},
            "dim is 12: with spread a SimplE takes a multiple of group (8)",
        ),
        ({"top": "many"}, "top is 'many', but only loss softmax takes it"),
        (
            {"loss": "softmax", "weighting": "mean"},
            "weighting is mean, but loss softmax does not read it: leave it out",
        ),
        ({"loss": "softmax", "gamma": "3"}, "gamma is 3.0, but loss softmax does not read it: leave it out"),
        ({"loss": "softmax", "temperature": 0}, "temperature is 0: input should be greater than 0"),
        ({"loss": "softmax", "shared": 1}, "shared is 1.0, but only codebooks and the map of a low rank (group, rank)"),
        ({"loss": "dual", "role": "stage1", "teacher": "x", "alpha": 0.3}, "alpha is 0.3, but loss dual does not read"),
        ({"model": "ComplEx", "gamma": 2}, "gamma is 2.0, but only a distance or loss margin has one: leave it out"),
        ({"model": "ComplEx", "norm": 2}, "norm is 2, but only a distance takes one: leave it out"),
        ({"model": "TransE", "epsilon": 1}, "epsilon is 1.0, but only RotatE has one: leave it out"),
        ({"temperature": 2}, "temperature is 2.0, but only weighting self-adversarial has one: leave it out"),
        ({"alpha": 0.3}, "alpha is 0.3, but only stages 1 and 2 have soft labels: leave it out"),
        ({"role": "stage1", "teacher": "x", "beta": 0.3}, "beta is 0.3, but only stage 2 trains the teacher: leave"),
        ({"teacher_lr": 0.3}, "teacher_lr is 0.3, but only stage 2 trains the teacher: leave it out"),
        ({"objective": {"loss": "margin"}}, "unknown parameter objective: the parameters are dataset,"),
        ({"loss": ["margin"]}, "loss is ['margin']: choose one of"),
        ({"dataset": ""}, "dataset is '': "),
        ({"dataset": 7}, "dataset is 7: input should be a valid string"),
        ({"device": 0}, "device is 0: input should be a valid string"),
        ({"dataset": None, "protocol": 1}, "protocol is 1: input should be a valid string"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values: dict, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**values)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_takes_its_own_parameters_and_no_other(loss: str) -> None:
    base = {"model": "ComplEx", "loss": loss, "role": "stage2", "teacher": "x", "penalty": 0}
    base |= {"group": 4} if loss == "softmax" else {"weighting": "self-adversarial"}
    for name in sorted({name for kind in LOSSES.values() for name in kind.model_fields} - {"loss", "shared"}):
        value = {"gamma": 3.0, "weighting": "mean", "rank": 8, "group": 2}.get(name, OTHER[name])
        if LOSSES[loss].model_fields.get(name) and not (name == "gamma" and loss != "margin"):
            beside = {"group": 8, "depth": 4} if name == "spread" else {}
            assert getattr(make_config(**{**base, **beside, name: value}), name) == value
        else:
            with pytest.raises(ConfigError, match=f"^{name} is "):
                make_config(**{**base, name: value})


def test_a_default_of_another_loss_is_taken_and_what_a_record_inherited_is_kept() -> None:
    plain = make_config(model="TransE", loss="softmax")
    assert make_config(**plain.model_dump()) == plain
    assert make_config(model="TransE", loss="softmax", gamma="1", weighting="sum") == plain
    values = {"model": "TransE", "loss": "softmax", "gamma": 6, "weighting": "mean"}
    inherited = RunConfig(**values)
    assert (inherited.gamma, inherited.weighting) == (6.0, "mean") and inherited.run_id != plain.run_id
    assert RunConfig(**inherited.model_dump()) == inherited == read_config(values)
    assert inherited.objective == plain.objective  # an engine reads nothing of it
    for name, value in (("group", 4), ("rank", "8"), ("top", 3)):
        with pytest.raises(ConfigError, match=f"{name} is .*, but only loss softmax takes it"):
            read_config({"loss": "margin", name: value})


def test_a_copy_is_checked_as_a_new_config_is() -> None:
    config = make_config(model="ComplEx", loss="softmax", dim=8)
    assert config.model_copy(update={"group": 4, "dim": 4}) == make_config(
        model="ComplEx", loss="softmax", dim=4, group=4
    )
    with pytest.raises(ValueError, match="it must divide"):
        config.model_copy(update={"group": 4, "dim": 1})


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^dim is 0: .*; lr is -1: .*; unknown parameter epoch \(= 3\): did"):
        make_config(dim=0, lr=-1, epoch=3)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(dim="x" * 10_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "device", ["tpu", "gpu", "", "CPU", "meta", "mps", "hpu", "xla", "cpu:1", "cuda:-1", "cuda:99", "cuda:x", "cpu\n"]
)
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        make_config(device=device)
    assert str(caught.value).startswith(f"device is {device!r}, which this machine does not have; it has cpu")
    assert "\n" not in str(caught.value)


@no_gpu
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(DeviceError, match=r"device is 'cuda', which this machine does not have; it has cpu$"):
        make_config(device="cuda")


def test_the_device_found_is_returned() -> None:
    assert check_device("cpu") == torch.device("cpu")


# ---- numbers as strings: papermill's -r and a shell pass them so ----------------------------------------------------
def test_a_number_in_a_string_is_that_number_and_names_the_same_run() -> None:
    strings = {"dim": "16", "seed": "3", "norm": "2", "lr": "1e-2", "gamma": "0.3", "epochs": " 20 ", "negatives": "9"}
    numbers = {"dim": 16, "seed": 3, "norm": 2, "lr": 0.01, "gamma": 0.3, "epochs": 20, "negatives": 9}
    assert make_config(**strings) == make_config(**numbers)
    assert make_config(**strings).run_id == make_config(**numbers).run_id
    assert make_config(dim=16.0, gamma=6) == make_config(dim=16, gamma=6.0)


# ---- the name of a run ----------------------------------------------------------------------------------------------
def test_run_id_is_the_same_in_every_process() -> None:
    values = {"dim": 4, "lr": 0.1, "model": "TransH", "dataset": "nations"}
    code = f"from kgdistil import make_config; print(make_config(**{values}).run_id)"
    home = str(Path(kgdistil.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": home, "PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    name = make_config(**values).run_id
    assert ran.stdout.strip() == name, ran.stderr
    assert name.startswith("nations-transh-d4-no-ds-s0-")


@pytest.mark.parametrize("field", make_config().model_dump())
def test_run_id_changes_with_every_field_but_the_device(field: str) -> None:
    base, other = FITTING.get(field, {}), "cpu" if field == "device" else OTHER[field]
    changed = make_config(**base).run_id != make_config(**{**base, field: other}).run_id
    assert changed == (field != "device")
    if field == "device":
        assert RunConfig(device="cuda").run_id == make_config().run_id


def committed() -> list[dict[str, Any]]:
    """Every record and every trial of a search that stands under results/."""
    results = Path(kgdistil.__file__).parent.parent / "results"
    lines = [line for path in sorted((results / "search").glob("*.jsonl")) for line in path.read_text().splitlines()]
    texts = [path.read_text() for path in sorted((results / "runs").glob("*.json"))] + lines
    return [json.loads(text) for text in texts]


def test_committed_records_keep_their_names_and_their_configs() -> None:
    found = committed()
    assert len(found) > 2000
    for record in found:
        config = RunConfig(**record["config"])
        assert config.run_id == record["id"]
        assert config.model_dump().items() >= record["config"].items()
        assert RunConfig(**config.model_dump()) == config
        assert read_config({**record["config"], "device": "cpu"}) == config.model_copy(update={"device": "cpu"})


@given(st.text(min_size=1, max_size=300))
@example("/data/my graph/")
@example("..")
@example("/")
def test_run_id_is_a_plain_file_name_whatever_the_data_set_is_called(dataset: str) -> None:
    name = make_config(dataset=dataset, model="ComplEx", role="stage2", teacher="x", seed=2**63 - 1).run_id
    assert len(name) < 120 and name[0].isalnum()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


# ---- anything at all ------------------------------------------------------------------------------------------------
KEYS = [*make_config().model_dump(), "dims", "lr ", "objective", "inherited"]
ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.none(), max_size=1)
    | st.sampled_from([*MODELS, "stage1", "stage2", "teacher", "cuda", "cpu", "margin", "cosine", 8, "8", 0.1, "nan"])
)


@settings(max_examples=400)
@given(
    st.dictionaries(st.sampled_from([*make_config().model_dump(), "dims", "lr ", "objective"]), ANYTHING, max_size=6)
)
def test_any_values_give_a_config_or_one_line(values: dict) -> None:
    try:
        config = make_config(**values)
    except (ConfigError, DeviceError) as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert make_config(**config.model_dump()) == config
        assert config.run_id == make_config(**config.model_dump()).run_id
