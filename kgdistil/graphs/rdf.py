"""Triples in RDF: IRIs and blank nodes are entities, a literal is none.

A blank node has no name that means anything outside its file, and `[ ]` has none at all, so each file's are named anew,
by what they stand beside (RDFC-1.0, the W3C's canonicalisation): the same file gives the same names at each reading.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from kgdistil.errors import DataError, needs
from kgdistil.graphs.forms import BLOCK, OTHERS, Form, Rows, Source, ending, opened, reading
from kgdistil.graphs.labels import show

FORMATS = {
    ".nt": "N_TRIPLES",
    ".ttl": "TURTLE",
    ".nq": "N_QUADS",
    ".trig": "TRIG",
    ".jsonld": "JSON_LD",
    ".rdf": "RDF_XML",
    ".owl": "RDF_XML",
}  # ending: format of pyoxigraph
LINES = (".nt", ".nq")  # a triple a line, which ends with a dot, or with one and a comment
ENDED = re.compile(rb"""(?:<[^>]*> | "(?:[^"\\]|\\.)*" | [^<"\#])*?\.\s*(?:\#.*)?\s*\Z""", re.X | re.S)
LABEL = "http://www.w3.org/2000/01/rdf-schema#label"
DEEP = 100  # what lies within each other: beyond, parsers overflow their stack and blank nodes take hours
OPENING, CLOSING = (b"[", b"(", b"{", b"<<"), (b"]", b")", b"}", b">>")
# Up to the next bracket of Turtle and its kin or of JSON: comments, texts, IRIs and escaped characters hold none.
BRACKETS = re.compile(
    rb'''(?: [^\#"'<>\[\](){}\\]++ | \\. | \#[^\n]*+
      | """(?:[^"\\]++|\\.|"(?!""))*+""" | \'\'\'(?:[^'\\]++|\\.|'(?!\'\'))*+\'\'\'
      | "(?:[^"\\\n]++|\\.)*+" | '(?:[^'\\\n]++|\\.)*+' | <[^<>\s]*+> | [\#"'\\] | <(?!<) | >(?!>) )*+
    ([\[\](){}] | << | >> | \Z)''',
    re.S | re.X,
)
SECONDS = 10  # and one for each 10,000 triples
CANONICAL = """
import sys, pyoxigraph as rdf
quads = rdf.Dataset(rdf.parse(input=sys.stdin.buffer, format=rdf.RdfFormat.N_QUADS))
quads.canonicalize(rdf.CanonicalizationAlgorithm.RDFC_1_0)
rdf.serialize(quads, sys.stdout.buffer, format=rdf.RdfFormat.N_QUADS)
"""


def read_rdf(source: Source, form: Form, part: str) -> Rows:
    """Triples of IRIs and blank nodes; rdfs:label is kept as the readable name.

    Args:
        part: put before a blank node's name, so that those of several files stay apart.
    """
    path, format_ = source.path, FORMATS[ending(source.path)]
    with needs("pyoxigraph", f"reading {ending(path)}"):
        import pyoxigraph as rdf
    source.sure = source.raw = True
    node = rdf.NamedNode | rdf.BlankNode
    unnamed: list[Any] = []

    def name(x: Any) -> str:
        return x.value if isinstance(x, rdf.NamedNode) else f"_:{part}{x.value}"

    def facts() -> Iterator[tuple[int, str, str, str]]:
        with opened(path) as file:
            _begin(file, str(path))
            for number, fact in enumerate(rdf.parse(input=file, format=getattr(rdf.RdfFormat, format_)), 1):
                subject, predicate, object_ = fact.subject, fact.predicate.value, fact.object
                if not isinstance(fact.graph_name, rdf.DefaultGraph):
                    form.left_out["name(s) of graphs"] += 1
                if isinstance(subject, rdf.BlankNode) or isinstance(object_, rdf.BlankNode):
                    unnamed.append(rdf.Quad(subject, fact.predicate, object_))
                if isinstance(subject, rdf.NamedNode) and isinstance(object_, rdf.NamedNode):
                    yield number, subject.value, predicate, object_.value
                elif predicate == LABEL and isinstance(subject, rdf.NamedNode) and isinstance(object_, rdf.Literal):
                    form.names.setdefault(subject.value, object_.value)
                elif not isinstance(subject, node) or not isinstance(object_, node):
                    form.left_out["triple(s) with a literal or a quoted triple"] += 1
        for number, fact in enumerate(_canonical(unnamed, str(path)), 1):
            if isinstance(fact.subject, node) and isinstance(fact.object, node):
                yield number, name(fact.subject), fact.predicate.value, name(fact.object)

    try:
        with reading(path):
            _not_too_deep(source, format_)
            found = facts()
            while block := list(itertools.islice(found, BLOCK)):
                yield tuple(map(list, zip(*block)))
    except DataError as error:
        if "LoadDocumentCallback" not in str(error):
            raise DataError(_with_line(path, str(error))) from None
        raise DataError(
            f"{path}: its @context lies elsewhere, and nothing is fetched; write the context itself into the file, or "
            "convert it to .nt"
        ) from None


def _begin(file: Any, what: str) -> None:
    """Go past a byte order mark; DataError where it is that of UTF-16."""
    head = file.peek(3)[:3]
    if head[:2] in OTHERS:
        raise DataError(f"{what}: {OTHERS[head[:2]]}")
    if head == BOM_UTF8:
        file.read(3)


def _with_line(path: Path, fault: str) -> str:
    """An error with the line that it names; of lines with a triple each, the one before where that has no end."""
    if not (found := re.search(r" at line (\d+)", fault)):
        return fault
    before, line, at, number = b"", b"", 0, int(found[1])
    with opened(path) as file:
        for i, line in zip(range(1, number + 1), file):
            if i < number and line.strip() and not line.lstrip().startswith(b"#"):
                before, at = line, i
    text = lambda of: show(of.decode(errors="replace").strip())
    if ending(path) in LINES and before and not ENDED.match(before):
        return f"{path}, line {at}: no dot at its end, which a triple has; that line is {text(before)}"
    return f"{fault}; that line is {text(line)}" if line.strip() else fault


def _canonical(quads: list[Any], what: str) -> Iterator[Any]:
    """Quads with blank nodes named by what they stand beside.

    Nodes that are much alike can take any time, so it is done in a process of its own, for a limited time.
    """
    if not quads:
        return iter(())
    import pyoxigraph as rdf

    seconds = SECONDS + len(quads) // 10_000
    content = rdf.serialize(quads, format=rdf.RdfFormat.N_QUADS)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", CANONICAL], input=content, capture_output=True, timeout=seconds, check=True
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{what}: its blank nodes are so much alike that {seconds} s did not tell them apart; give them IRIs"
        ) from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise DataError(f"{what}: its blank nodes cannot be told apart: {last[:200]}; give them IRIs") from None
    return rdf.parse(input=done.stdout, format=rdf.RdfFormat.N_QUADS)


def _not_too_deep(source: Source, format_: str) -> None:
    """DataError, with the line, where brackets, quoted triples or elements lie deeper in each other than `DEEP`."""
    with opened(source.path) as file:
        if format_ == "RDF_XML":
            depth, parser = 0, expat.ParserCreate()

            def start(*_: Any) -> None:
                nonlocal depth
                depth += 1
                if depth > DEEP:
                    raise _too_deep(source, parser.CurrentLineNumber, "elements")

            def end(*_: Any) -> None:
                nonlocal depth
                depth -= 1

            parser.StartElementHandler, parser.EndElementHandler = start, end
            try:
                parser.ParseFile(file)  # it refuses entities that grow without bound, too
            except expat.ExpatError as error:
                raise DataError(f"cannot read {source.what}: {error}") from None
            return
        count, before = 0, b""
        for block in iter(lambda: file.read(1 << 20), b""):
            count += sum(block.count(x) for x in (b"[", b"(", b"{")) + (before[-1:] + block).count(b"<<")
            before = block
    if count <= DEEP:  # most files; in the others that many may stand beside each other
        return
    with opened(source.path) as file:
        text, depth = file.read(), 0
    for found in BRACKETS.finditer(text):
        bracket = found[1]
        depth = max(0, depth + (bracket in OPENING) - (bracket in CLOSING))
        if depth > DEEP:
            what = (
                "quoted triples"
                if bracket == b"<<"
                else f"{bracket.decode()} {CLOSING[OPENING.index(bracket)].decode()}"
            )
            raise _too_deep(source, text.count(b"\n", 0, found.end()) + 1, what)


def _too_deep(source: Source, line: int, what: str) -> DataError:
    return DataError(
        f"{source.what}, line {line}: its {what} are nested more than {DEEP} deep; give what lies inside its own name"
    )
