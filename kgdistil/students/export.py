"""A student for other programs: ONNX, numpy's .npz, and the files of the book's browser page."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kgdistil.answer.student import holds_student
from kgdistil.compress import packing
from kgdistil.errors import ConfigError, KgdistilError, needs
from kgdistil.files import write_bytes, write_json
from kgdistil.graphs.importers.arrays import label_array, sealed_npz
from kgdistil.kernels import said
from kgdistil.models import SIDES, KGEModel, RotatE, Side
from kgdistil.students import browser
from kgdistil.students.labelled import Labelled

FORMS = ("onnx", "npz", "browser")
AGREE = 1e-4  # of scores in onnxruntime and PyTorch, relative to the largest


def export(student: Labelled, form: str, output: str | os.PathLike) -> list[Path]:
    """Write a student in one form ("onnx", "npz" or "browser"); returns the files.

    Raises:
        ConfigError: no such form.
        KgdistilError: a package is missing, the file cannot be written, or the written ONNX answers otherwise.
    """
    if form not in FORMS:
        raise ConfigError(f"export knows no form {form!r}: choose one of {', '.join(FORMS)}")
    output = Path(output).expanduser()
    if form == "npz":
        return export_npz(student, output)
    if os.path.lexists(output) and not output.is_dir():  # a file, a device, or a link that leads nowhere
        raise ConfigError(f"{output} is no folder: {form} needs one; name a new or an empty one")
    if holds_student(output):
        raise ConfigError(f"{output} holds a student: {form} needs a folder of its own; name another one")
    return export_onnx(student, output) if form == "onnx" else export_browser(student, output)


def export_npz(student: Labelled, path: Path) -> list[Path]:
    """One .npz: entities, relations, entities_scale for int8, labels, and what the score needs besides.

    An int8 entity is entities[i] × entities_scale[i]; codes are read as `kgdistil.compress.packing.pack` says. The
    equations are in `kgdistil/models.py`. Labels that numpy's texts cannot hold, or only in gigabytes, are the bytes of
    a JSON list (`graphs.importers.arrays.label_array`). `sum` is what `sealed_npz` there says.
    """
    if path.suffix.lower() != ".npz":
        raise ConfigError(f"{path}: name a file that ends in .npz")
    model, graph = student.model, student.graph
    packed = packing.pack(model, student.precision)
    arrays: dict[str, Any] = {name.replace(".", "_"): x.detach().cpu().numpy() for name, x in packed.items()}
    about = {
        "model": type(model).__name__,
        "convention": "kgdistil",
        "dim": model.dim,
        "norm": model.norm,
        "offset": model.offset,
        "epsilon": model.epsilon,
    }
    labels: dict[str, Any] = {
        "entity_labels": label_array(graph.entities),
        "relation_labels": label_array(graph.relations),
    }
    buffer = io.BytesIO()
    more: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
    np.savez_compressed(buffer, **arrays, **labels, **more)
    write_bytes(path, sealed_npz(buffer))
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
    """tails.onnx (head, relation → scores) and heads.onnx (tail, relation → scores), and labels.json.

    Inputs are int64 ids [n], the output float32 [n, E]; n is free. Each file is run in onnxruntime and must give
    PyTorch's scores before it is put in place. The numbers are float32: ONNX has no rows of int8 with a scale each.
    """
    if said(student.model, "comparison") is None:
        raise ConfigError(
            f"{type(student.model).__name__} does not say how it compares, so it has no form in ONNX: export an npz"
        )
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
    labels = {"entities": list(graph.entities), "relations": list(graph.relations), "names": dict(graph.descriptions)}
    write_json(folder / "labels.json", labels)
    return [*files, folder / "labels.json"]


def export_browser(student: Labelled, folder: Path) -> list[Path]:
    """The files that the browser page of the book reads, written by `kgdistil.students.browser`."""
    browser.export(student.model, student.graph, folder)
    browser.export_graph(student.graph, folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


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
