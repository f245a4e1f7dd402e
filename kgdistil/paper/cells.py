"""The paper's runs, each a cell with an address: what is trained, not yet how (`recipe`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kgdistil.compress.size import PART, floats, row_bytes, whole_count
from kgdistil.errors import ConfigError

GRAPHS, DIMS = ("wn18rr", "fb15k-237"), (32, 16, 8)
PAPER_MODELS = ("TransE", "TransH", "ComplEx", "RotatE")
PROTOCOLS = ("tuned", "paper")
# Where a model's recipes have a METHOD-start, a cell goes on from a run of its own, and students learn there from the
# teacher's
START = "-start"
# The paper's methods: their name in reproduction.toml, and the role of the run
_PAPERS = {
    "teacher": ("teacher", "teacher"),
    "no-DS": ("no-DS", "no-ds"),
    "DS": ("stage2", "stage2"),
    "-S1": ("only2", "stage2"),
    "-S2": ("stage1", "stage1"),
}
_ALL = _PAPERS | {m + START: (name + START, role) for m, (name, role) in _PAPERS.items() if m != "DS"}
METHODS = {method: name for method, (name, _) in _ALL.items()}
# Beyond the paper (`frontier`): cells of this protocol give the bytes of an entity in place of the dimension
FRONTIER = "frontier"
RECIPROCAL = "ReciprocalComplEx"
OWN_LISTS = "own-lists"
COMMITTEE = "committee"  # goes on from a distilled student, on the lists of several such: `members` of other seeds
PATHS = "paths"  # on the lists of a path model (`distillation.paths`) and a distilled student, the recipe's `beside`
# as many floats as the teacher, of few bits
CODED = {"distilled": "stage1", OWN_LISTS: "stage1", COMMITTEE: "stage1", PATHS: "stage1", "coded-alone": "no-ds"}
# Fewer floats than the teacher and a map that all entities share (`LowRankComplEx`), of few bits: how many floats share
# four bits, and whether the entities of most triples are whole (`compress.whole`).
FORMS = {"low-rank": (2, False), "low-rank-4bit": (1, False), "whole-2bit": (2, True), "whole-1bit": (4, True)}
ALONE = "-alone"
LOW_RANK = {name + end: role for name in FORMS for end, role in (("", "stage1"), (ALONE, "no-ds"))}
ENTITIES = {"wn18rr": 40943, "fb15k-237": 14541, "umls": 135}
SMALL = {"small-distilled": "stage1", "small": "no-ds"}  # float32, fewer floats
TRAINED = {"teacher": "teacher", **CODED, **LOW_RANK, **SMALL}
ROLES = {method: role for method, (_, role) in _ALL.items()} | TRAINED
DISTILLED = ("DS", "-S1", "-S2", "distilled", OWN_LISTS, COMMITTEE, PATHS, *FORMS, "small-distilled")
USUAL = 64  # dimension of a teacher whose size no address names


@dataclass(frozen=True)
class Cell:
    """One model of one table: what is trained, not yet how.

    `size` and `teacher_size` are what the address says: dimensions, or for FRONTIER the bytes of an entity. `dim` and
    `bytes` are what their names say, whichever of them the address gives.
    """

    protocol: str
    dataset: str
    model: str
    method: str  # a key of METHODS, or of TRAINED
    size: int
    teacher_size: int = USUAL  # of the teacher that a distilled student has
    seed: int = 0

    def __str__(self) -> str:
        named = self.teacher_size != USUAL and (self.distilled or self.protocol == FRONTIER)
        more = f"/{self.teacher_size}" if named else ""
        return f"{self.protocol}/{self.dataset}/{self.model}/{self.method}/{self.size}{more}" + (
            f"@{self.seed}" if self.seed else ""
        )

    @property
    def dim(self) -> int:
        """The model's dimension. Raises as `shape`."""
        return shape(self)["dim"]

    @property
    def bytes(self) -> int:
        """Bytes of one entity, float32 or codes."""
        return self.size if self.protocol == FRONTIER else row_bytes(self.model, self.size)

    @property
    def distilled(self) -> bool:
        return self.method.removesuffix(START) in DISTILLED

    @property
    def role(self) -> str:
        return ROLES[self.method]

    @property
    def teacher(self) -> Cell:
        """The cell of a distilled cell's teacher, which has seed 0 whatever the student's seed is.

        Raises:
            ConfigError: it is not distilled.
        """
        if not self.distilled:
            raise ConfigError(f"{self} has no teacher")
        method = "teacher" + (START if self.method.endswith(START) else "")
        return replace(self, method=method, size=self.teacher_size, teacher_size=USUAL, seed=0)

    @property
    def searched_as(self) -> Cell:
        """The cell whose search this one shares: that of seed 0, and of 64 dimensions for larger ones."""
        if self.protocol == FRONTIER:
            return replace(self, seed=0)
        return replace(self, seed=0, size=min(self.size, USUAL), teacher_size=USUAL)


def shape(cell: Cell) -> dict[str, int]:
    """As parameters of a run: `dim`, and for a student of few bits the floats that share them (`group`), `rank` and
    `whole`.

    Raises:
        ConfigError: no such number of bytes.
    """
    if cell.protocol != FRONTIER:
        return {"dim": cell.size}
    factor = floats(cell.model, 1)
    width = (cell.teacher_size if cell.method in (*CODED, *LOW_RANK) else cell.size) / 4
    group, rank, whole = 0 if cell.method not in CODED else width / (2 * cell.size), 0, 0
    if cell.method in LOW_RANK:
        group, some = FORMS[cell.method.removesuffix(ALONE)]
        codes = cell.size * PART // (PART + 1) if some else cell.size
        rank = 2 * group * codes
        whole = whole_count(ENTITIES[cell.dataset], rank, codes) if some else 0
    if width % factor or group % 1 or width < factor or rank > width:
        raise ConfigError(
            f"{cell}: {cell.size} bytes are no {cell.method} {cell.model} beside one of {cell.teacher_size}"
        )
    few_bits = {"group": int(group), "rank": rank, "whole": whole}
    return {"dim": int(width) // factor} | {key: value for key, value in few_bits.items() if value}


def parse(text: str) -> Cell:
    """The cell of an address "protocol/graph/model/method/size[/teacher's size][@seed]", in capitals or not.

    Raises:
        ConfigError: with the part that is wrong.
    """
    address, _, seed = text.partition("@")
    parts = address.split("/")
    beyond = parts[0].lower() == FRONTIER
    allowed = (
        (*PROTOCOLS, FRONTIER),
        (*GRAPHS, *["umls"] * beyond),
        (*PAPER_MODELS, *[RECIPROCAL] * beyond),
        tuple(TRAINED if beyond else METHODS),
    )
    try:
        numbers = [int(x) for x in [*parts[4:6], seed or 0]]
        if len(parts) not in (5, 6) or any(x < 0 for x in numbers):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{text!r} is no cell: write protocol/graph/model/method/dim, as in tuned/wn18rr/RotatE/DS/8"
        ) from None
    for place, choice in enumerate(allowed):
        meant = [name for name in choice if name.lower() == parts[place].lower()]
        if not meant:
            raise ConfigError(f"{text!r}: {parts[place]!r} is none of {', '.join(choice)}")
        parts[place] = meant[0]
    protocol, graph, model, method = parts[:4]
    return Cell(protocol, graph, model, method, numbers[0], numbers[1] if len(parts) == 6 else USUAL, numbers[-1])


def table_cells(protocol: str, dataset: str, methods: Iterable[str] = ("no-DS", "DS")) -> list[Cell]:
    """The cells of a table like Table 3: a teacher of 64 dimensions, students of 32, 16 and 8, four models."""
    cells = []
    for model in PAPER_MODELS:
        cells.append(Cell(protocol, dataset, model, "teacher", 64))
        cells += [Cell(protocol, dataset, model, method, dim) for dim in DIMS for method in methods]
    return cells


def cells_of(what: str, protocol: str) -> list[Cell]:
    """The cells behind "table3", "table4", "table6", "figure1", "figure2" or "figure3".

    Raises:
        ConfigError: nothing of that name is trained.
    """
    if what in ("table3", "table4"):
        return table_cells(protocol, GRAPHS[what == "table4"])
    if what == "table6":
        return [c for c in table_cells(protocol, "wn18rr", ("DS", "-S1", "-S2")) if c.method != "teacher"]
    if what == "figure1":
        return [Cell(protocol, "wn18rr", "TransE", "no-DS", dim) for dim in (8, 16, 32, 64, 128, 256, 512)]
    if what == "figure2":
        return [Cell(protocol, "wn18rr", "TransE", "DS", dim, large) for large in (64, 128, 256) for dim in DIMS]
    if what == "figure3":
        return [Cell(protocol, "fb15k-237", "RotatE", method, 32) for method in ("no-DS", "-S2", "DS")]
    raise ConfigError(f"{what!r}: nothing of that name is trained; choose table 3, 4 or 6, or figure 1, 2 or 3")
