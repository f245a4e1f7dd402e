"""What the book asks of Sphinx: formulas as MathML, so that no page needs a script for them, and our docstrings."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from latex2mathml.exceptions import NumeratorNotFoundError

LONG = 60  # characters of LaTeX from which an inline formula scrolls on a narrow screen


def mathml(latex: str, display: str) -> str:
    """A formula as MathML. ValueError, with the formula, where it cannot be read."""
    try:
        return convert(latex, display=display)
    except (NumeratorNotFoundError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"formula {latex!r} cannot be read: {error!r}") from error


def visit_inline(self: Any, node: nodes.math) -> None:
    formula = mathml(node.astext(), "inline")
    if len(node.astext()) > LONG:
        formula = f'<span class="long-formula" tabindex="0" role="group" aria-label="formula">{formula}</span>'
    self.body.append(formula)
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """One line; a numbered one carries its number at the right and the anchor that links point to."""
    self.body.append(self.starttag(node, "div", CLASS="math formula"))
    self.body.append('<div class="formula-body" tabindex="0" role="group" aria-label="formula">')
    self.body.append(mathml(node.astext(), "block") + "</div>")
    if node["number"]:
        self.body.append(f'<span class="formula-number">({node["number"]})</span>')
        self.add_permalink_ref(node, "link to this formula")
    self.body.append("</div>")
    raise nodes.SkipNode


def as_restructured_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The package's docstrings are plain text with `code`; reStructuredText would stumble over their | and *."""
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)  # napoleon would take what stands before a colon for a type
    if name == "kgdistil":  # its docstring is a line, an example, and more lines
        end = lines.index("", 2)
        lines[1:end] = ["", "::", "", *(f"    {line}" for line in lines[2:end])]
    inside = False  # a list such as "`score`      the equation, …" with its lines below
    for i, line in enumerate(lines):
        entry = re.match(r"(`\w+`) {2,}(\S.*)", line)
        inside = bool(entry) or (inside and line.startswith("  "))
        lines[i] = f"- {entry[1]}: {entry[2]}" if entry else f"  {line.strip()}" if inside else line
    table = [i for i, line in enumerate(lines) if line.lstrip().startswith("|") and line.rstrip().endswith("|")]
    for i, line in enumerate(lines):
        if i in table:
            lines[i] = line.replace("`", "``")
            continue
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([|*\\])", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"`{part}`" for part in parts[1::2]]  # literal text
        lines[i] = "".join(parts)
    if table:
        cells = [[cell.strip() for cell in lines[i].strip().strip("|").split("|")] for i in table]
        cells = [row for row in cells if set("".join(row)) != {"-"}]
        listed = [f"   {' ' if column else '*'} - {cell}" for row in cells for column, cell in enumerate(row)]
        lines[table[0] : table[-1] + 1] = [".. list-table::", "   :header-rows: 1", "", *listed, ""]


def for_screen_readers(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A list has list items: docutils calls the bibliography a list, but its entries are none."""
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def without_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Jupyter Book puts sphinx-thebe's script, which knows the address of a CDN, into every page; nothing uses it."""
    scripts = context.get("script_files", [])
    context["script_files"] = [x for x in scripts if "thebe" not in f"{x} {getattr(x, 'attributes', '')}".lower()]


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon's
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", for_screen_readers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
