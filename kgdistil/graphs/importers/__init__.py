"""Teachers trained elsewhere, as a model of one's own graph.

Rows are put into the graph's order by label, so nothing depends on how the other library numbered them. Reading never
runs code that a file brings: arrays are read without pickle, checkpoints with torch's weights-only loading, and
PyKEEN's pickle only where the caller trusts it.
"""

from __future__ import annotations

import functools
import os

from kgdistil.answer.format import HEADER
from kgdistil.answer.student import holds_student
from kgdistil.checkpoint import read_labelled
from kgdistil.config import short
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.graph import Graph
from kgdistil.graphs.forms import refuse
from kgdistil.graphs.importers.arrays import from_arrays, is_arrays, read_folder, read_npz
from kgdistil.graphs.importers.biggraph import is_biggraph, read_biggraph
from kgdistil.graphs.importers.checkpoints import read_checkpoint
from kgdistil.graphs.importers.conventions import CONVENTIONS, check_gamma, learnt
from kgdistil.graphs.importers.dglke import is_dglke, read_dglke
from kgdistil.graphs.importers.pykeen import PYKEEN_MODEL, from_pykeen, read_pykeen
from kgdistil.graphs.importers.tables import FreeTransH, Imported, a_file, from_tables

__all__ = ["CONVENTIONS", "FreeTransH", "Imported", "from_arrays", "from_pykeen", "from_tables", "import_teacher"]

CHECKPOINTS = (".pt", ".pth", ".ckpt")


def import_teacher(
    source: str | os.PathLike,
    graph: Graph,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    convention: str | None = None,
    norm: int | None = None,
    gamma: float | None = None,
    labels: str | os.PathLike | None = None,
) -> Imported:
    """A teacher from a file or folder of any known kind.

    Args:
        source: a result folder of PyKEEN; a checkpoint of LibKGE; the state that OpenKE or TorchKGE save (.ckpt, .pt,
            .pth); a folder of DGL-KE or PyTorch-BigGraph; an .npz; a folder of this package, of a student or of arrays.
        model: what an .npz without that entry, or a state that may be TransE or DistMult, holds.
        trust_pickle: the file comes from oneself or someone trusted: a pickle may run code.
        convention: the library whose layout the numbers have, one of `conventions.CONVENTIONS`, where the file does
            not say it.
        norm: of a distance, 1 or 2, where the file does not say it.
        gamma: γ by which DGL-KE, OpenKE and RotatE's own code scale RotatE's angles, where the file does not say it.
        labels: folder with the tables of labels and numbers, where they do not lie beside the teacher.
    Raises:
        CheckpointError, ConfigError: one line that says what is wrong and what to do.
    """
    path, beside = a_file(source), None if labels is None else a_file(labels)
    check_gamma(gamma)
    if not os.path.exists(path):  # False for a name that is too long, too
        raise CheckpointError(f"{short(str(path))} is not there; name the teacher's file or folder")
    told = functools.partial(refuse, ConfigError, f"{path} says it itself")
    unread = functools.partial(told, convention=convention, norm=norm, gamma=gamma)
    if holds_student(path):
        unread(labels=labels)
        found, _, words = read_labelled(path)
        tables = {name: table.detach() for name, table in found.named_parameters()}
        options = {name: getattr(found, name) for name in ("norm", "offset", "epsilon")}
        both = words["entities"], words["relations"]
        return learnt(from_tables(type(found).__name__, tables, both, graph, f"kgdistil, {path}", **options), graph)
    if (path / PYKEEN_MODEL).is_file():
        unread(labels=labels)
        return learnt(read_pykeen(path, graph, trust_pickle), graph)
    if is_biggraph(path):
        unread()
        return learnt(read_biggraph(path, graph, beside), graph)
    if is_arrays(path):
        unread(labels=labels)
        return read_folder(path, graph)
    if is_dglke(path):
        return read_dglke(path, graph, model, convention, norm, gamma, beside)
    if path.suffix.lower() == ".npz" and path.is_file():
        told(labels=labels)
        return read_npz(path, graph, model, convention, norm, gamma)
    if path.suffix.lower() in CHECKPOINTS and path.is_file():
        return read_checkpoint(path, graph, model, convention, norm, gamma, beside)
    raise CheckpointError(
        f"{path} is no teacher: it must be a folder with {PYKEEN_MODEL} (PyKEEN), *_entity.npy (DGL-KE), "
        f"embeddings_*.h5 (PyTorch-BigGraph) or {HEADER} (kgdistil), a file {', '.join(CHECKPOINTS)} (LibKGE, OpenKE, "
        "TorchKGE), or an .npz"
    )
