"""A student for other programs: ONNX, PyKEEN, FAISS, numpy's arrays, and the files of the book's browser page."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kgdistil.answer.files import write_atomically, write_bytes, write_json
from kgdistil.answer.folder import check_free
from kgdistil.answer.format import FILES
from kgdistil.answer.labels import Labels
from kgdistil.answer.student import holds_student
from kgdistil.compress import packing, whole
from kgdistil.errors import ConfigError, KgdistilError, needs
from kgdistil.graph import Graph
from kgdistil.graphs.importers.arrays import label_arrays, sealed_npz
from kgdistil.graphs.importers.pykeen import PYKEEN_MODEL, PYKEEN_TRIPLES
from kgdistil.kernels import said
from kgdistil.models import SIDES, KGEModel, RotatE, Side, TransH
from kgdistil.students.labelled import Labelled

FORMS = ("onnx", "npz", "arrays", "pykeen", "faiss", "browser")
ROWS = 1 << 18  # of labels.tsv that are made at a time
MOST = (1 << 31) - (1 << 20)  # bytes of the weights in ONNX, whose file is one message of protobuf
AGREE = 1e-4  # of scores in onnxruntime and PyTorch, relative to the largest


def export(student: Labelled, form: str, output: str | os.PathLike, replace: bool = True) -> list[Path]:
    """Write a student in one of `FORMS`; returns the files.

    Raises:
        ConfigError: no such form, or none for this student, or something is there and not to be replaced.
        KgdistilError: a package is missing, the file cannot be written, or the written ONNX answers otherwise.
    """
    if form not in FORMS:
        raise ConfigError(f"export knows no form {form!r}: choose one of {', '.join(FORMS)}")
    output = Path(output).expanduser()
    if form in ("npz", "faiss"):
        check_free(output, replace)
        return export_npz(student, output) if form == "npz" else export_faiss(student, output)
    if os.path.lexists(output) and not output.is_dir():  # a file, a device, or a link that leads nowhere
        raise ConfigError(f"{output} is no folder: {form} needs one; name a new or an empty one")
    if holds_student(output):
        raise ConfigError(f"{output} holds a student: {form} needs a folder of its own; name another one")
    check_free(output, replace)
    writers = {"onnx": export_onnx, "arrays": export_arrays, "pykeen": export_pykeen, "browser": export_browser}
    return writers[form](student, output)


def about_arrays(model: KGEModel) -> dict[str, Any]:
    """What arrays do not say of themselves."""
    sizes = {name: getattr(model, name) for name in ("dim", "norm", "offset", "epsilon")}
    return {"model": type(model).__name__, "convention": "kgdistil", **sizes}


def export_npz(student: Labelled, path: Path) -> list[Path]:
    """One .npz: entities, relations, entities_scale for int8, labels, and what the score needs besides.

    An int8 entity is entities[i] × entities_scale[i]; codes are read as `kgdistil.compress.packing.pack` says. The
    equations are in `kgdistil/models.py`. Labels that numpy's texts cannot hold, or only in gigabytes, are UTF-8 with
    the places where they begin (`graphs.importers.arrays.label_arrays`). `sum` is what `sealed_npz` there says.
    """
    if path.suffix.lower() != ".npz":
        raise ConfigError(f"{path}: name a file that ends in .npz")
    model, graph = student.model, student.graph
    packed = packing.pack(model, student.precision)
    arrays: dict[str, Any] = {name.replace(".", "_"): x.detach().cpu().numpy() for name, x in packed.items()}
    labels: dict[str, Any] = label_arrays("entity_labels", graph.entities) | label_arrays(
        "relation_labels", graph.relations
    )
    buffer = io.BytesIO()
    more: dict[str, Any] = {name: np.array(value) for name, value in about_arrays(model).items()}
    np.savez_compressed(buffer, **arrays, **labels, **more)
    write_bytes(path, sealed_npz(buffer))
    return [path]


def export_arrays(student: Labelled, folder: Path) -> list[Path]:
    """A folder that any program with numpy reads; `import_teacher` does, too.

    - entities.npy: float32 [E, width], decoded where the student is smaller; the equations are in models.py.
    - relations.npy: float32 [R, width].
    - map.npy: float32 [rank, 2·dim], of a low rank: what an entity stands for is entities[i] @ map.
    - codes.npy: uint8 [E, M] from 0 to 15, and codebook.npy: float32 [M, 16, g], of a student of codes: the row that
      columns.npy, int32 [M·g], puts in place is codebook[m, codes[i, m]], one m after the other; of a nested one what
      comes to the same place is added. whole.npy, int32 [K]: entities whose codes say nothing, where there are such
      (`compress.whole`); their rows are those of entities.npy.
    - labels.tsv: kind (entity, relation), id, label, name; fields are quoted as in CSV where they have to be.
    - about.json: model, dim, norm, offset, epsilon.
    """
    model, graph = student.model, student.graph
    arrays = {name: table.detach().cpu().numpy() for name, table in model.named_parameters()}
    if student.precision in (*packing.GROUPS, packing.NESTED):
        codes, book = packing.encode(model, student.precision)
        places, book = np.tile(columns(model), len(book) if book.ndim == 4 else 1), book.reshape(-1, *book.shape[-2:])
        arrays |= {"codes": codes.numpy(), "codebook": book.half().float().numpy(), "columns": places}
        arrays |= {whole.NAME: kept.numpy()} if len(kept := whole.of(model)) else {}
    for stale in {"map", "codes", "codebook", "columns", whole.NAME} - arrays.keys():  # of another student
        (folder / f"{stale}.npy").unlink(missing_ok=True)
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_bytes(folder / f"{name}.npy", buffer.getvalue())
    write_atomically(folder / "labels.tsv", lambda scratch: write_labels(Path(scratch), graph))
    write_json(folder / "about.json", about_arrays(model))
    return [folder / name for name in (*(f"{name}.npy" for name in arrays), "labels.tsv", "about.json")]


def write_labels(path: Path, graph: Graph) -> None:
    """labels.tsv of `export_arrays`, made by the column: labels that lie packed become no strings of Python's."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.large_binary()  # no large_string, since labels may hold lone surrogates
    one = lambda x: pa.scalar(x, text)

    def packed(labels: Sequence[str]) -> Any:
        arrays = Labels.of(labels).arrays()
        buffers = [None, *(pa.py_buffer(np.ascontiguousarray(arrays[name])) for name in ("offsets", "text"))]
        return pa.LargeBinaryArray.from_buffers(text, len(labels), buffers)

    def field(x: Any) -> Any:
        inner = pc.replace_substring(x, b'"', b'""')
        quoted = pc.binary_join_element_wise(one(b'"'), inner, one(b'"'), one(b""))
        return pc.if_else(pc.match_substring_regex(x, b'[\t\n\r"]'), quoted, x)

    names = [graph.descriptions.get(x, "") for x in graph.entities] if graph.descriptions else None
    with path.open("wb") as file:
        file.write(b"kind\tid\tlabel\tname\n")
        for kind, labels, beside in (("entity", graph.entities, names), ("relation", graph.relations, None)):
            every, also = packed(labels), None if beside is None else field(packed(beside))
            for begin in range(0, len(every), ROWS):
                part = every[begin : begin + ROWS]
                ids = pa.array(np.arange(begin, begin + len(part))).cast(pa.large_string()).cast(text)
                name = also[begin : begin + ROWS] if also is not None else one(b"")
                ended = pc.binary_join_element_wise(name, one(b"\n"), one(b""))
                rows = pc.binary_join_element_wise(one(kind.encode()), ids, field(part), ended, one(b"\t"))
                _, ends, content = rows.buffers()
                file.write(memoryview(content)[: np.frombuffer(ends, np.int64)[len(rows)]])


def columns(model: KGEModel) -> np.ndarray:
    """Where in an entity's row [width] the numbers of its groups lie, one group after the other: int32 [width]."""
    order = np.arange(model.entities.shape[1], dtype=np.int32)
    return order.reshape(2, -1).T.ravel() if model.paired else order


def export_pykeen(student: Labelled, folder: Path) -> list[Path]:
    """What PyKEEN's own pipeline saves: trained_model.pkl (`torch.load`) and training_triples (`from_path_binary`).

    The numbers are float32. PyKEEN's distances have no offset, so its scores are lower by ours; its TransH does not
    scale normals, so they are written with length 1; its RotatE has norm 2, whatever its p says; a low rank is the
    ComplEx that it stands for.

    Raises:
        ConfigError: a model that PyKEEN computes otherwise.
    """
    model, graph, folder = student.model.eval().cpu(), student.graph, Path(folder)
    name = type(model).__name__.removeprefix("LowRank").removeprefix("Free")
    known = name in ("TransE", "TransH", "ComplEx", "RotatE", "DistMult") and (name != "RotatE" or model.norm == 2)
    if said(model, "comparison") is None or not known:
        raise ConfigError(
            f"PyKEEN has no {type(model).__name__} of norm {model.norm} that scores as this one; export arrays"
        )
    with needs("pykeen", "exporting to PyKEEN"):
        from pykeen import models
        from pykeen.triples import TriplesFactory
    entity, relation = ({x: i for i, x in enumerate(labels)} for labels in (graph.entities, graph.relations))
    factory = TriplesFactory(graph.train.cpu().long(), entity, relation)
    distance = {"scoring_fct_norm": model.norm} if name.startswith("Trans") else {}
    theirs = getattr(models, name)(triples_factory=factory, embedding_dim=model.dim, random_seed=0, **distance)
    with torch.no_grad():
        entities, relations = model.rows(model.entities), [model.relations.detach()]
        if isinstance(model, TransH):
            relations = [*model.parts(model.relations)][::-1]
        elif isinstance(model, RotatE):
            angle = model.relations.double() * (math.pi / model.range)
            relations = [torch.cat([angle.cos(), angle.sin()], dim=1).float()]
        if model.paired or model.factored:
            entities, *relations = (torch.complex(*x.chunk(2, dim=1)) for x in (entities, *relations))
        parts = zip([*theirs.entity_representations, *theirs.relation_representations], [entities, *relations])
        for part, rows in parts:
            weight = next(part.parameters())
            weight.copy_((torch.view_as_real(rows) if rows.is_complex() else rows).reshape(weight.shape))
    buffer = io.BytesIO()
    torch.save(theirs.eval(), buffer)
    write_bytes(folder / PYKEEN_MODEL, buffer.getvalue())
    try:
        factory.to_path_binary(folder / PYKEEN_TRIPLES)
    except OSError as error:
        raise KgdistilError(f"cannot write {folder / PYKEEN_TRIPLES}: {error.strerror or error}") from None
    return [folder / PYKEEN_MODEL, *sorted((folder / PYKEEN_TRIPLES).iterdir())]


def export_faiss(student: Labelled, path: Path) -> list[Path]:
    """An IndexPQ of the same codes under the inner product, written by `faiss.write_index`; its ids are the entities'.

    A query vector is made by `Student.vectors`; `faiss.IndexPQFastScan(index)` answers faster and rounds.

    Raises:
        ConfigError: a student without codes, or one whose scores are no inner products, or that has whole entities.
    """
    model = student.model
    if said(model, "comparison") != "dot":
        raise ConfigError(f"FAISS compares by inner products, which {type(model).__name__} does not: export arrays")
    if student.precision not in (*packing.GROUPS, packing.NESTED):
        few = ", ".join((*packing.GROUPS, packing.NESTED))
        raise ConfigError(f"a FAISS index holds codes ({few}), and this student {student.precision}: export arrays")
    if count := len(whole.of(model)):
        raise ConfigError(f"a FAISS index holds codes alone, and {count:,} of these entities have none: export arrays")
    with needs("faiss-cpu", "exporting to FAISS"):
        import faiss
    packed = {name: x.numpy(force=True) for name, x in packing.pack(model, student.precision).items()}
    book = packed["entities.book"].astype(np.float32)  # of a deep one the queries have each number as often
    groups = book[..., 0, 0].size
    index: Any = faiss.IndexPQ(groups * book.shape[-1], groups, 4, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(book.ravel(), index.pq.centroids)
    faiss.copy_array_to_vector(
        packed["entities"].ravel(), index.codes
    )  # two a byte, the first in the low bits, as here
    index.ntotal, index.is_trained = len(packed["entities"]), True
    write_bytes(path, faiss.serialize_index(index).tobytes())
    return [path]


class Scores(nn.Module):
    """Scores [n, E] of all tails of (head, relation), or all heads of (relation, tail), for ids [n]."""

    def __init__(self, model: KGEModel, side: Side):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, anchor: Tensor, relation: Tensor) -> Tensor:
        model = self.model
        queries, candidates = model.queries(anchor, relation, self.side), model.entities
        if said(model, "comparison") in ("distance", "modulus"):  # cdist has no counterpart in ONNX
            difference = queries[:, None] - candidates
            if isinstance(model, RotatE):
                return model.offset - model.distance_from_zero(difference)
            return model.offset - torch.linalg.vector_norm(difference, model.norm, dim=-1)
        return model.compare(queries, candidates)


def export_onnx(student: Labelled, folder: Path) -> list[Path]:
    """tails.onnx (head, relation → scores) and heads.onnx (tail, relation → scores), and labels.json; of a graph whose
    labels lie packed (`answer.labels`) the labels.tsv of `export_arrays`.

    Inputs are int64 ids [n], the output float32 [n, E]; n is free. Each file is run in onnxruntime and must give
    PyTorch's scores before it is put in place. The numbers are float32: ONNX has no rows of int8 with a scale each.
    """
    if said(student.model, "comparison") is None:
        raise ConfigError(
            f"{type(student.model).__name__} does not say how it compares, so it has no form in ONNX: export an npz"
        )
    size = 4 * sum(x.numel() for x in student.model.parameters())
    if size >= MOST:
        raise ConfigError(f"a file of ONNX holds less than 2 GiB, and these weights take {size:,} bytes: export arrays")
    with needs("onnx, onnxruntime and onnxscript", "exporting to ONNX"):
        import onnx  # noqa: F401 - whether it is there
        import onnxruntime
        import onnxscript  # noqa: F401 - whether it is there
    model, graph, files = student.model.eval(), student.graph, []
    example = torch.arange(3) % model.num_entities, torch.arange(3) % model.num_relations
    many = torch.arange(7) % model.num_entities, torch.arange(7) % model.num_relations
    for side, *_ in reversed(SIDES):
        name, anchor = f"{side}s.onnx", "head" if side == "tail" else "tail"
        module = Scores(model, side)
        dynamic = ({0: torch.export.Dim("n")},) * 2
        with quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                input_names=[anchor, "relation"],
                output_names=["score"],
                dynamic_shapes=dynamic,
                verbose=False,
            )
        assert program is not None  # as it is with dynamo
        content = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for query in (example, many):
            (found,) = session.run(None, {anchor: query[0].numpy(), "relation": query[1].numpy()})
            with torch.no_grad():
                wanted = module(*query).numpy()
            if found.shape != wanted.shape or np.abs(found - wanted).max() > AGREE * max(1, np.abs(wanted).max()):
                raise KgdistilError(f"{folder / name}: onnxruntime does not give PyTorch's scores; nothing was written")
        write_bytes(folder / name, content)
        files.append(folder / name)
    if isinstance(graph.entities, Labels):
        write_atomically(folder / "labels.tsv", lambda scratch: write_labels(Path(scratch), graph))
        return [*files, folder / "labels.tsv"]
    labels = {"entities": list(graph.entities), "relations": list(graph.relations), "names": dict(graph.descriptions)}
    write_json(folder / "labels.json", labels)
    return [*files, folder / "labels.json"]


def export_browser(student: Labelled, folder: Path) -> list[Path]:
    """A student's folder, which the browser page of the book reads where it is served (book/site/try/kge.mjs).

    Raises:
        ForeignModelError: a model of one's own.
    """
    student.student().save(folder)
    return [folder / name for name in FILES if (folder / name).exists()]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks to its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
