"""One run, described by one validated value. The paper's settings are the defaults."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kgdistil.errors import ConfigError, DeviceError
from kgdistil.graph import NAMES
from kgdistil.losses import Objective
from kgdistil.models import MODELS, KGEModel

# Numbers may come as strings ("8"), as papermill and shells pass them. Upper bounds keep the kernels' 32 bits safe.
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Name = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=10)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
LARGEST_STEP = 1 << 26  # corruptions, batch_size × negatives

# γ, k and C as the paper sets them; SimplE and DistMult follow ComplEx
PAPER: dict[str, dict[str, Any]] = {
    "TransE": {"gamma": 1.0, "negatives": 5, "penalty": 0.0},
    "TransH": {"gamma": 0.5, "negatives": 5, "penalty": 0.0625},
    "RotatE": {"gamma": 6.0, "negatives": 25, "penalty": 0.0},
}
DOT_PRODUCT = {"gamma": 0.0, "negatives": 25, "penalty": 0.0}


class RunConfig(BaseModel):
    """Everything that decides a run's numbers. Fields left out take the paper's value for the model.

    Use `make_config` rather than the class: it turns what is wrong into one readable line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Name = "umls"
    model: str = "RotatE"  # one of MODELS
    dim: Size = 8
    role: Literal["teacher", "no-ds", "stage1", "stage2"] = "no-ds"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    protocol: str = "paper"  # a tag: which table the run belongs to

    norm: Annotated[int, Field(ge=1, le=2)] = 1  # p of TransE's and TransH's distance
    loss: Literal["margin", "cross-entropy", "softmax", "dual"]  # not the paper's: softmax (`lists`), dual (DualDE)
    gamma: Weight  # γ: the margin of Eq. 1; for cross-entropy on a distance, the constant of γ − distance
    group: Literal[0, 1, 2, 4, 8, 16] = 0  # softmax: floats of an entity that share four bits (`codes`); 0: float32
    rank: Annotated[int, Field(ge=0, le=1 << 17)] = 0  # softmax: floats of an entity of low rank; 0: all of them
    shared: Annotated[float, Field(ge=0, le=10)] = 0.15  # softmax: of the learning rate, for codebooks and a map
    accumulator: Annotated[float, Field(ge=0, le=1)] = 0.0  # softmax: where Adagrad's sums of squares begin
    top: Annotated[int, Field(ge=0, le=LARGEST_STEP)] = 0  # softmax: candidates from the teacher's best, for each query
    epsilon: Annotated[Weight, Field(gt=0)] = 2.0  # ε of RotatE's initialisation
    negatives: Size  # k; for softmax, entities drawn for a batch
    weighting: Literal["sum", "mean", "self-adversarial"] = "sum"
    temperature: Weight = 1.0  # of self-adversarial weights; for softmax, of the soft labels
    penalty: Weight  # C of TransH's soft constraints; N3 weight of the dot-product models
    alpha: Share = 0.5  # Eq. 5 and 11: what the student's soft label counts
    alpha_last: Share | None = None  # softmax: α goes there evenly over the epochs; None: it stays
    beta: Share = 0.5  # Eq. 11: what the teacher's soft label counts

    lr: Rate = 0.005
    teacher_lr: Rate | None = None  # stage 2; the student's where left out
    schedule: Literal["plateau", "linear", "cosine", "constant"] = "plateau"
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_STEP)] = 1024
    epochs: Count = 1000
    check_every: Count = 10  # epochs between validations
    patience: Annotated[int, Field(ge=0)] = 15  # validations without a better MRR before stopping; 0: never stop
    test_curve: bool = False  # also rank the test split at each validation (Figure 3); never used for choosing

    teacher: Name | None = None  # stages 1 and 2: a run id, or the folder of a saved model
    student: Name | None = None  # stage 2 and softmax: what the model starts from, as `teacher`; None: drawn at random
    device: str = "cpu"

    @model_validator(mode="before")
    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The paper's value for what is left out or None."""
        given = {key: value for key, value in values.items() if value is not None}
        for key, value in given.items():
            if isinstance(value, bool) and key in cls.model_fields and key != "test_curve":
                raise ValueError(f"{key} is {value!r}: it must be a number or a text")  # Python takes True for 1
        asked = given.get("model", cls.model_fields["model"].default)
        name = next((m for m in MODELS if m.lower() == str(asked).lower()), None)
        if name is None:  # said here, since without a model there are no defaults for the other checks to go by
            raise ValueError(f"model is {short(asked)}: choose one of {', '.join(MODELS)}")
        if str(given.get("dataset")).lower() in NAMES:
            given["dataset"] = given["dataset"].lower()  # as `load` does, so that the run is the same
        return {
            "loss": MODELS[name].loss,
            **PAPER.get(name, PAPER["TransE"] if MODELS[name].distance else DOT_PRODUCT),
            **given,
            "model": name,
        }

    @model_validator(mode="after")
    def fits(self) -> RunConfig:
        """What no field can say alone."""
        if self.role in ("stage1", "stage2") and self.teacher is None:
            raise ValueError(f"teacher is missing: {self.role} needs a run id or the folder of a saved model")
        if self.role in ("teacher", "no-ds") and self.teacher is not None:
            raise ValueError(f"teacher is {self.teacher!r}, but {self.role} trains without one")
        if self.student is not None and self.role != "stage2" and self.loss != "softmax":
            raise ValueError(f"student is {self.student!r}, but only stage2 and loss softmax start from a model")
        if self.group and self.loss != "softmax":
            raise ValueError(f"group is {self.group}, but only loss softmax trains coded entities")
        factor = MODELS[self.model].entity_factor
        floats = self.dim * factor
        if self.rank and (not MODELS[self.model].low_rank_form or self.loss != "softmax" or self.rank > floats):
            able = ", ".join(name for name, kind in MODELS.items() if kind.low_rank_form)
            raise ValueError(
                f"rank is {self.rank}, but only {able} with loss softmax takes one, at most its "
                f"{self.dim} × {factor} floats"
            )
        if self.group and (self.rank or floats) % self.group:
            of = f"the {self.rank} floats" if self.rank else f"the {self.dim} × {factor} floats"
            raise ValueError(f"group is {self.group}: it must divide {of} of an entity")
        for name, value in (("top", self.top or None), ("alpha_last", self.alpha_last)):
            if value is not None and (self.loss != "softmax" or self.role not in ("stage1", "stage2")):
                raise ValueError(f"{name} is {value}, but only stages 1 and 2 with loss softmax take it: leave it out")
        if self.loss == "dual" and self.role not in ("stage1", "stage2"):
            raise ValueError(f"loss is 'dual', but {self.role} has no teacher: choose 'cross-entropy'")
        if self.accumulator and self.loss != "softmax":
            raise ValueError(f"accumulator is {self.accumulator}, but only loss softmax is trained by Adagrad: set 0")
        if self.loss == "softmax" and self.temperature == 0:
            raise ValueError("temperature is 0: softmax needs soft labels of a temperature above 0")
        if self.penalty and self.model in ("TransE", "RotatE"):
            raise ValueError(f"penalty is {self.penalty}, but {self.model} has no regulariser: set it to 0")
        if self.batch_size * self.negatives > LARGEST_STEP:
            raise ValueError(f"batch_size × negatives is {self.batch_size * self.negatives}: at most {LARGEST_STEP}")
        return self

    @property
    def run_id(self) -> str:
        """A name that is the same for the same config on any device and another for any other.

        A field at its default does not count, so that records keep their names when a field is added; a default
        must therefore never change.
        """
        decisive = self.model_dump(exclude_defaults=True, exclude={"device"})
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        graph = re.sub("[^a-z0-9-]+", "_", Path(self.dataset).name.lower())[:40].strip("_-") or "graph"
        return f"{graph}-{self.model.lower()}-d{self.dim}-{self.role}-s{self.seed}-{digest[:8]}"

    @property
    def objective(self) -> Objective:
        return Objective(
            self.loss,
            self.gamma,
            self.negatives,
            self.weighting,
            self.temperature,
            self.alpha,
            self.beta,
            self.penalty,
            self.batch_size,
            self.seed,
            self.group,
            self.top,
            self.shared,
            self.accumulator,
        )

    def alpha_at(self, epoch: int) -> float:
        """α of epoch number `epoch` (from 0)."""
        if self.alpha_last is None:
            return self.alpha
        return self.alpha + (self.alpha_last - self.alpha) * epoch / max(1, self.epochs - 1)

    @property
    def model_options(self) -> dict[str, Any]:
        """What `build_model` needs besides sizes: γ is part of the score where the loss is cross-entropy."""
        in_score = MODELS[self.model].distance and self.loss in ("cross-entropy", "dual")
        given = {"norm": self.norm, "offset": self.gamma if in_score else 0.0, "epsilon": self.epsilon}
        return given | ({"rank": self.rank} if self.rank else {})

    def compatible(self, teacher: KGEModel) -> list[str]:
        """Warnings, one line each, for a teacher that is odd but possible."""
        if teacher.dim < self.dim:
            return [f"the student (dim {self.dim}) is larger than its teacher (dim {teacher.dim})"]
        return []


def make_config(**values: Any) -> RunConfig:
    """A `RunConfig`, or ConfigError with one line for each thing wrong: the name, the value, what is allowed.

    Raises:
        ConfigError: unknown or impossible parameters.
        DeviceError: a device that is not there.
    """
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(e, values) for e in error.errors())) from None
    check_device(config.device)
    return config


def explain(error: Mapping[str, Any], values: dict[str, Any]) -> str:
    """One of pydantic's errors as a line for people."""
    name = ".".join(str(x) for x in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, RunConfig.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else f"the parameters are {', '.join(RunConfig.model_fields)}"
        return f"unknown parameter {name} (= {short(error['input'])}): {hint}"
    if not name:
        return error["msg"].removeprefix("Value error, ")
    return f"{name} is {short(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def short(value: Any) -> str:
    """`repr`, cut to what a line can hold."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def check_device(device: str) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1").

    Raises:
        DeviceError: no such device on this machine.
    """
    try:
        if re.fullmatch(r"cpu|cuda(:\d{1,4})?", device):
            torch.empty(1, device=device)
            return torch.device(device)
        raise ValueError
    except (RuntimeError, AssertionError, ValueError):
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise DeviceError(f"device is {short(device)}, which this machine does not have; it has {here}") from None
