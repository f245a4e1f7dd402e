"""One run, described by one validated value. The paper's settings are the defaults."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from kgdistil.errors import ConfigError, DeviceError, short
from kgdistil.graph import NAMES
from kgdistil.models import MODELS, ComplEx

# Numbers may come as strings ("8"), as papermill and shells pass them. Upper bounds keep the kernels' 32 bits safe.
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Sample = Annotated[int, Field(ge=0)]  # so many; 0: all
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


# ---- what each loss has of its own -----------------------------------------------------------------------------------
class Objective(BaseModel):
    """A loss with the parameters that it reads; another loss's parameter cannot be written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    loss: str
    inherits: ClassVar[tuple[str, ...]] = ()  # never read, yet part of the names of committed runs


class NegativeSampling(Objective):
    """A true triple against its k corruptions."""

    weighting: Literal["sum", "mean", "self-adversarial"] = "sum"
    temperature: Weight = 1.0  # of self-adversarial weights


class Margin(NegativeSampling):
    """Eq. 1, 3, 4 and 9."""

    loss: Literal["margin"]
    gamma: Weight  # γ, the margin
    alpha: Share = 0.5  # Eq. 5 and 11: what the student's soft label counts
    beta: Share = 0.5  # Eq. 11: what the teacher's soft label counts


class CrossEntropy(NegativeSampling):
    """Eq. 6 to 8 and 10."""

    loss: Literal["cross-entropy"]
    gamma: Weight  # the constant of a distance's score, γ − distance; a dot product has none
    alpha: Share = 0.5  # Eq. 5 and 11
    beta: Share = 0.5


class Dual(NegativeSampling):
    """DualDE (Zhu et al. 2022), beyond the paper: soft and hard label share by how sure the other model is."""

    loss: Literal["dual"]
    gamma: Weight  # as for cross-entropy
    inherits = ("alpha", "beta")


class SampledSoftmax(Objective):
    """KvsAll, or a sampled softmax where `negatives` is below the number of entities; beyond the paper."""

    loss: Literal["softmax"]
    group: Literal[0, 1, 2, 4, 8, 16] = 0  # floats of an entity that share a codebook of sixteen vectors; 0: float32
    depth: Literal[1, 2, 4, 8] = 1  # codes of a group; the first 1, 2, 4 of them are students of their own: `nested`
    spread: bool = False  # the first of them see the first floats of a group only, and the next ones more
    whole: Sample = 0  # entities of most training triples, which keep their numbers, in int8
    rank: Annotated[int, Field(ge=0, le=1 << 17)] = 0  # floats of an entity of low rank; 0: all of them
    shared: Annotated[float, Field(ge=0, le=10)] = 0.15  # of the learning rate, for codebooks and the map of a low rank
    accumulator: Annotated[float, Field(ge=0, le=1)] = 0.0  # where Adagrad's sums of squares begin
    accumulators: Literal["number", "row"] = "number"  # an entity's: one for each number, or the mean over its row
    answers: Sample = 0  # of a query in a batch at most: one that has more is taken as several queries; 0: all
    regulariser: Literal["n3", "dura"] = "n3"  # what `penalty` weighs: N3, or DURA of the kinds of ComplEx
    relation_weight: Weight = 0.0  # of the softmax over all relations for (h, ?, t); dot-product models
    top: Annotated[int, Field(ge=0, le=LARGEST_STEP)] = 0  # candidates from the teacher's best, for each query
    unlabelled: Weight = 0.0  # what as many queries again, made up, with soft labels only, count beside the graph's
    temperature: Annotated[Weight, Field(gt=0)] = 1.0  # of the soft labels
    alpha: Share = 0.5  # Eq. 5 and 11
    alpha_last: Share | None = None  # α goes there evenly over the epochs; None: it stays
    beta: Share = 0.5
    inherits = ("gamma", "weighting")


KINDS: tuple[type[Objective], ...] = (Margin, CrossEntropy, SampledSoftmax, Dual)
LOSSES = {get_args(kind.model_fields["loss"].annotation)[0]: kind for kind in KINDS}
OWN = {name: field for kind in LOSSES.values() for name, field in kind.model_fields.items() if name != "loss"}
PARSE = {name: TypeAdapter[Any](Annotated[f.annotation, f]) for name, f in OWN.items()}  # type: ignore[arg-type]


class RunConfig(BaseModel):
    """Everything that decides a run's numbers. Fields left out take the paper's value for the model.

    Written and read flat: `RunConfig(loss="margin", gamma=2)`, `config.gamma`, `config.model_dump()`; what the loss has
    of its own is checked and kept as `objective`. Use `make_config` rather than the class: it turns what is wrong into
    one readable line, and refuses what nothing would read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Name = "umls"
    model: str = "RotatE"  # one of MODELS
    dim: Size = 8
    role: Literal["teacher", "no-ds", "stage1", "stage2"] = "no-ds"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    protocol: str = "paper"  # a tag: which table the run belongs to

    norm: Annotated[int, Field(ge=1, le=2)] = 1  # p of a distance
    epsilon: Annotated[Weight, Field(gt=0)] = 2.0  # ε of RotatE's initialisation
    objective: Annotated[Margin | CrossEntropy | Dual | SampledSoftmax, Field(discriminator="loss")]
    inherited: tuple[tuple[str, Any], ...] = ()  # what a record holds beside what its loss reads (`Objective.inherits`)
    negatives: Size  # k; for softmax, entities drawn for a batch
    penalty: Weight  # C of TransH's soft constraints; N3 weight of the dot-product models

    lr: Rate = 0.005
    teacher_lr: Rate | None = None  # stage 2; the student's where left out
    schedule: Literal["plateau", "linear", "cosine", "constant"] = "plateau"
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_STEP)] = 1024
    epochs: Count = 1000
    check_every: Count = 10  # epochs between validations
    patience: Annotated[int, Field(ge=0)] = 15  # validations without a better MRR before stopping; 0: never stop
    check_sample: Sample = 0  # validation triples of a check, always the same; the last weights are then kept
    final_sample: Sample = 0  # triples of valid, and of test, that are ranked at the end
    test_curve: bool = False  # also rank the test split at each validation (Figure 3); never used for choosing

    teacher: Name | None = None  # stages 1 and 2: a run id, or the folder of a saved model
    student: Name | None = None  # stage 2 and softmax: what the model starts from, as `teacher`; None: drawn at random
    device: str = "cpu"

    @model_validator(mode="before")
    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The paper's value for what is left out or None, and the loss's own fields apart."""
        given = {key: value for key, value in values.items() if value is not None}
        for key, value in given.items():
            if isinstance(value, bool) and key in FLAT and key not in ("test_curve", "spread"):
                raise ValueError(f"{key} is {value!r}: it must be a number or a text")  # Python takes True for 1
            if key in NESTED:
                raise ValueError(f"unknown parameter {key}: the parameters are {', '.join(FLAT)}")
        asked = given.get("model", cls.model_fields["model"].default)
        name = next((m for m in MODELS if m.lower() == str(asked).lower()), None)
        if name is None:  # said here, since without a model there are no defaults for the other checks to go by
            raise ValueError(f"model is {short(asked)}: choose one of {', '.join(MODELS)}")
        loss = given.get("loss", MODELS[name].loss)
        if not isinstance(loss, str) or loss not in LOSSES:
            raise ValueError(f"loss is {short(loss)}: choose one of {', '.join(LOSSES)}")
        if str(given.get("dataset")).lower() in NAMES:
            given["dataset"] = given["dataset"].lower()  # as `load` does, so that the run is the same
        flat = {**papers(name), **given, "model": name}
        own, inherited, kind = {"loss": flat.pop("loss", loss)}, {}, LOSSES[loss]
        for key in [key for key in OWN if key in flat]:
            value = flat.pop(key)
            if key in kind.model_fields:
                own[key] = value
            elif (parsed := parse(key, value)) == defaults(name)[key]:
                continue  # as records of another loss hold it
            elif key in kind.inherits and parsed is not None:
                inherited[key] = parsed
            else:
                own[key] = value  # which the objective refuses by name
        return {**flat, "objective": own, "inherited": tuple(inherited.items())}

    @model_validator(mode="after")
    def fits(self) -> RunConfig:
        """What no field can say alone."""
        kind, taught = MODELS[self.model], self.role in ("stage1", "stage2")
        if taught and self.teacher is None:
            raise ValueError(f"teacher is missing: {self.role} needs a run id or the folder of a saved model")
        if not taught and self.teacher is not None:
            raise ValueError(f"teacher is {self.teacher!r}, but {self.role} trains without one")
        if self.student is not None and self.role != "stage2" and self.loss != "softmax":
            raise ValueError(f"student is {self.student!r}, but only stage 2 and loss softmax start from a model")
        if self.loss == "dual" and not taught:
            raise ValueError(f"loss is 'dual', but {self.role} has no teacher: choose 'cross-entropy'")
        floats, sizes = self.dim * kind.entity_factor, f"{self.dim} × {kind.entity_factor} floats"
        if self.rank and (not kind.low_rank_form or self.rank > floats):
            able = ", ".join(name for name, kind in MODELS.items() if kind.low_rank_form)
            raise ValueError(f"rank is {self.rank}, but only {able} takes one, at most its {sizes}")
        self.check_codes()
        if self.penalty and self.model in ("TransE", "RotatE"):
            raise ValueError(f"penalty is {self.penalty}, but {self.model} has no regulariser: set it to 0")
        if self.regulariser == "dura" and not issubclass(kind, ComplEx):
            raise ValueError(f"regulariser is 'dura', but {self.model} has none such: choose 'n3'")
        if self.relation_weight and kind.distance:
            raise ValueError(f"relation_weight is {self.relation_weight}, but {self.model} is a distance: set it to 0")
        if self.whole and (self.depth > 1 or kind.distance):
            raise ValueError(f"whole is {self.whole}: it takes a dot product ({self.model}) of depth 1 ({self.depth})")
        if self.unlabelled and self.top:
            raise ValueError(f"unlabelled is {self.unlabelled}, but top is {self.top}: set one of them to 0")
        if self.batch_size * self.negatives > LARGEST_STEP:
            raise ValueError(f"batch_size × negatives is {self.batch_size * self.negatives}: at most {LARGEST_STEP}")
        return self

    def check_codes(self) -> None:
        """Refuse codes that do not fit an entity, or each other."""
        kind = MODELS[self.model]
        floats = self.rank or self.dim * kind.entity_factor
        if self.group > 4 and self.depth == 1:
            raise ValueError(f"group is {self.group}, which takes several codes (depth 2, 4 or 8): choose 4, 2 or 1")
        if self.spread and (kind.distance or self.rank or not 4 <= self.depth <= self.group):
            wanted = f"a depth of 4 or 8 ({self.depth}), as large a group ({self.group}) or more, and no rank"
            raise ValueError(f"spread is for a dot product ({self.model}): it takes {wanted} ({self.rank})")
        if self.group and floats % self.group:
            of = f"{self.rank} floats" if self.rank else f"{self.dim} × {kind.entity_factor} floats"
            raise ValueError(f"group is {self.group}: it must divide the {of} of an entity")
        if self.spread and self.dim * (1 + kind.paired) % self.group:
            raise ValueError(f"dim is {self.dim}: with spread a {self.model} takes a multiple of group ({self.group})")
        if self.depth > 1 and floats == self.group:
            raise ValueError(f"depth is {self.depth}, but a group of {self.group} floats is all of an entity: choose 1")

    def unread(self) -> list[str]:
        """One line for each field that was set and that nothing reads."""
        kind, taught = MODELS[self.model], self.teacher is not None
        readers = {  # who reads a field of this loss, and whether that is here
            "norm": ("a distance takes one", kind.distance),
            "epsilon": ("RotatE has one", self.model == "RotatE"),
            "gamma": ("a distance or loss margin has one", kind.distance or self.loss == "margin"),
            "temperature": ("weighting self-adversarial has one", self.weighting == "self-adversarial"),
            "depth": ("codes (group) have one", bool(self.group)),
            "spread": ("codes (group) have it", bool(self.group)),
            "whole": ("codes (group) leave entities whole", bool(self.group)),
            "shared": ("codebooks and the map of a low rank (group, rank) take it", bool(self.group or self.rank)),
            "alpha": ("stages 1 and 2 have soft labels", taught),
            "alpha_last": ("stages 1 and 2 have soft labels", taught),
            "unlabelled": ("stages 1 and 2 have a teacher", taught),
            "top": ("stages 1 and 2 have a teacher", taught),
            "beta": ("stage 2 trains the teacher", self.role == "stage2"),
            "teacher_lr": ("stage 2 trains the teacher", self.role == "stage2"),
        }
        if self.loss == "softmax":
            readers["temperature"] = ("stages 1 and 2 have soft labels", taught)
        lines = {name: f"loss {self.loss} does not read it" for name, _ in self.inherited}
        lines |= {name: f"only {who}" for name, (who, here) in readers.items() if not here and name not in lines}
        default, flat = defaults(self.model), self.model_dump()
        return [f"{n} is {flat[n]}, but {why}: leave it out" for n, why in lines.items() if flat[n] != default[n]]

    @property
    def loss(self) -> str:
        return self.objective.loss

    def __getattr__(self, name: str) -> Any:
        """A field of any loss, as `model_dump` has it."""
        if name not in OWN:
            raise AttributeError(f"a RunConfig has no {name}")
        found = getattr(self.objective, name, dict(self.inherited).get(name, defaults(self.model)[name]))
        return self.__dict__.setdefault(name, found)  # a step asks for it

    def model_dump(self, *, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        """As records hold it: the fields of all losses by name, those of another one at their defaults."""
        names = [name for name in FLAT if (include is None or name in include) and name not in (exclude or ())]
        return {name: getattr(self, name) for name in names}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RunConfig:
        """Another config with some flat fields changed; it is checked as a new one is."""
        return RunConfig(**{**self.model_dump(), **(update or {})})

    @functools.cached_property
    def run_id(self) -> str:
        """A name that is the same for the same config on any device and another for any other.

        A field at its default does not count, so that records keep their names when a field is added; a default
        must therefore never change.
        """
        decisive = {k: v for k, v in self.model_dump(exclude={"device"}).items() if k not in FIXED or v != FIXED[k]}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        graph = re.sub("[^a-z0-9-]+", "_", Path(self.dataset).name.lower())[:40].strip("_-") or "graph"
        return f"{graph}-{self.model.lower()}-d{self.dim}-{self.role}-s{self.seed}-{digest[:8]}"

    # ---- what follows from it
    def alpha_at(self, epoch: int) -> float | None:
        """α of epoch number `epoch` (from 0); None for DualDE, which has none."""
        if isinstance(self.objective, Dual) or self.alpha_last is None:
            return None if isinstance(self.objective, Dual) else self.objective.alpha
        return self.alpha + (self.alpha_last - self.alpha) * epoch / max(1, self.epochs - 1)

    @property
    def model_options(self) -> dict[str, Any]:
        """What `build_model` needs besides sizes: γ is part of the score where the loss is cross-entropy."""
        in_score = MODELS[self.model].distance and isinstance(self.objective, CrossEntropy | Dual)
        given = {"norm": self.norm, "offset": self.gamma if in_score else 0.0, "epsilon": self.epsilon}
        return given | ({"rank": self.rank} if self.rank else {})


NESTED = ("objective", "inherited")
FLAT = [f for n in RunConfig.model_fields if n != "inherited" for f in (["loss", *OWN] if n == "objective" else [n])]
# what a run's name leaves out
FIXED = {n: f.default for n, f in {**RunConfig.model_fields, **OWN}.items() if not f.is_required() and n not in NESTED}


def defaults(model: str) -> dict[str, Any]:
    """Every field's value where it is left out, by its flat name."""
    return {**FIXED, **papers(model)}


def papers(model: str) -> dict[str, Any]:
    """γ, k and C; a new distance follows TransE."""
    return PAPER.get(model, PAPER["TransE"] if MODELS[model].distance else DOT_PRODUCT)


def parse(name: str, value: Any) -> Any:
    """A value as the field of that name would take it, None where it would not."""
    try:
        return PARSE[name].validate_python(value)
    except ValidationError:
        return None


def make_config(**values: Any) -> RunConfig:
    """A `RunConfig`, or ConfigError with one line for each thing wrong: the name, the value, what is allowed.

    Raises:
        ConfigError: unknown or impossible parameters, and such as nothing reads.
        DeviceError: a device that is not there.
    """
    config = read_config(values)
    if unread := config.unread():
        raise ConfigError("; ".join(unread))
    return config


def read_config(values: Mapping[str, Any]) -> RunConfig:
    """`make_config` for what a record or a recipe of the paper holds: a field that nothing reads may have any value.

    Such a field is part of the run's name, so that it has to stay where it was written once.
    """
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(e) for e in error.errors())) from None
    check_device(config.device)
    return config


def explain(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a line for people."""
    name = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden" and name in OWN:
        takers = [loss for loss, kind in LOSSES.items() if name in kind.model_fields]
        return f"{name} is {short(error['input'])}, but only loss {' and '.join(takers)} takes it: leave it out"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, FLAT, 1)
        hint = f"did you mean {near[0]}?" if near else f"the parameters are {', '.join(FLAT)}"
        return f"unknown parameter {name} (= {short(error['input'])}): {hint}"
    if not name:
        return error["msg"].removeprefix("Value error, ")
    return f"{name} is {short(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


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
