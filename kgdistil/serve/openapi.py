"""The OpenAPI description, and the page that shows it; both from the models that requests are held to."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from kgdistil._version import __version__
from kgdistil.answer.rendering import tag
from kgdistil.serve.asked import Asked, Batch, Beginning, Likeness, Query

if TYPE_CHECKING:
    from kgdistil.serve.app import Limits

CUT = "Cut-Sets"  # a header of answers
TEXT, WHOLE, FLAG, SOME = ({"type": kind} for kind in ("string", "integer", "boolean", ["number", "null"]))
SHAPES: dict[str, Any] = {
    "Problem": {
        "description": "One line: what is wrong, and what to do.",
        "properties": {"error": TEXT},
        "required": ["error"],
    },
    "Answer": {
        "description": "query: the place in a batch, from 0. entity and name, or relation where that is asked for.",
        "properties": {
            **dict.fromkeys(("query", "rank", "id"), WHOLE),
            **dict.fromkeys(("entity", "name", "relation"), TEXT),
            **dict.fromkeys(("score", "probability"), SOME),
            "unseen": FLAG,
        },
        "required": ["rank", "id", "score"],
    },
    "Like": {
        "properties": {"rank": WHOLE, "entity": TEXT, "name": TEXT, "cosine": SOME},
        "required": ["rank", "entity", "name", "cosine"],
    },
    "Labelled": {"properties": {"id": WHOLE, "label": TEXT, "name": TEXT}, "required": ["id", "label"]},
    "Health": {"properties": {"status": {"const": "ok"}}, "required": ["status"]},
    "Student": {
        "description": "What it is, what one request may ask for, an example, and its card in Markdown.",
        "properties": {
            **dict.fromkeys(("model", "precision", "graph", "graph_sha256", "card"), TEXT),
            **dict.fromkeys(("dim", "rank", "entities", "relations", "bytes"), WHOLE),
            "run_id": {"type": ["string", "null"]},
            "triples": {"type": "boolean", "description": "Whether `new` and `typed` can be asked."},
            "limits": {"type": "object", "additionalProperties": WHOLE},
            "example": {"type": ["object", "null"], "additionalProperties": TEXT},
        },
        "required": [
            "model",
            "dim",
            "precision",
            "graph",
            "entities",
            "relations",
            "bytes",
            "triples",
            "limits",
            "card",
        ],
    },
}


def describe(limits: Limits) -> dict[str, Any]:
    """The description, OpenAPI 3.1."""
    _, made = models_json_schema(
        [(x, "validation") for x in (Query, Batch, Likeness, Beginning)], ref_template=place("{model}")
    )
    models = made["$defs"]
    for model in models.values():
        k = model["properties"]["k"]
        (k["anyOf"][0] if "anyOf" in k else k)["maximum"] = limits.k
    for name in ("head", "relation", "tail"):
        for choice in models["Batch"]["properties"][name]["anyOf"]:
            if choice["type"] == "array":
                choice["maxItems"] = limits.batch
    listed = lambda name: {"type": "array", "items": {"$ref": place(name)}}
    batch = {"required": True, "content": {"application/json": {"schema": {"$ref": place("Batch")}}}}
    shown = lambda what, kind="text/html": {"get": operation(what, TEXT, kind=kind)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kgdistil serve",
            "version": __version__,
            "description": "A student's answers, as kgdistil predict --json and kgdistil similar --json give them.",
        },
        "paths": {
            "/health": {"get": operation("Whether it answers.", {"$ref": place("Health")})},
            "/student": {"get": operation("What the student is.", {"$ref": place("Student")})},
            "/predict": {
                "get": cut(operation("The best answers to a query.", listed("Answer"), parameters(Query, models))),
                "post": cut(operation("The best answers to a query or to many.", listed("Answer"), body=batch)),
            },
            "/similar": {"get": operation("The most similar entities.", listed("Like"), parameters(Likeness, models))},
            "/labels": {
                "get": operation(
                    "Labels by how they or their names begin.", listed("Labelled"), parameters(Beginning, models)
                )
            },
            "/openapi.json": {"get": operation("This description.", {"type": "object"})},
            "/docs": shown("This description for people."),
            "/": shown("The page that asks this server."),
            "/page.mjs": shown("Its script.", "text/javascript"),
        },
        "components": {
            "schemas": {**{name: {"type": "object", **x} for name, x in SHAPES.items()}, "Batch": models["Batch"]}
        },
    }


def place(name: str) -> str:
    return f"#/components/schemas/{name}"


def operation(
    what: str, schema: Any, parameters: list[Any] | None = None, body: Any = None, kind: str = "application/json"
) -> dict[str, Any]:
    """A request, its answer, and what every request may be told."""
    line = {"application/json": {"schema": {"$ref": place("Problem")}}}
    told = {
        "200": {"description": "Done.", "content": {kind: {"schema": schema}}},
        "422": {"description": "It cannot be answered; the line says why.", "content": line},
        "503": {"description": "Not now: the student's files are damaged, or too many are asking.", "content": line},
        "default": {"description": "Refused: 400, 404, 405, 408, 413, 415 or 431.", "content": line},
    }
    found: dict[str, Any] = {"summary": what, "responses": told}
    return found | ({"parameters": parameters} if parameters else {}) | ({"requestBody": body} if body else {})


def cut(found: dict[str, Any]) -> dict[str, Any]:
    """An operation whose answer may have that header."""
    what = "Of how many queries the sets hold fewer answers than coverage asks for; a larger k gives them whole."
    found["responses"]["200"]["headers"] = {CUT: {"description": what, "schema": {"type": "integer"}}}
    return found


def parameters(model: type[Asked], models: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of a model behind a question mark."""
    schema, found = models[model.__name__], []
    for name, given in schema["properties"].items():
        about = dict(given)
        if about.get("default", 0) is None:  # it is left out, and has no null
            del about["default"]
            about["anyOf"] = [x for x in about["anyOf"] if x != {"type": "null"}]
        required = name in schema.get("required", ())
        found.append({"name": name, "in": "query", "required": required, "schema": about})
        if told := about.pop("description", None):
            found[-1]["description"] = told
    return found


def documentation(description: dict[str, Any]) -> str:
    """The description as a page that needs nothing else."""
    info, parts = description["info"], []
    for path, methods in description["paths"].items():
        for method, told in methods.items():
            rows = [(x["name"], x.get("description", ""), x["schema"]) for x in told.get("parameters", ())]
            if "requestBody" in told:
                rows += [
                    (name, x.get("description", ""), x)
                    for name, x in description["components"]["schemas"]["Batch"]["properties"].items()
                ]
            headers = told["responses"].get("200", {}).get("headers", {})
            rows += [(f"{name} (a header of the answer)", x["description"], x["schema"]) for name, x in headers.items()]
            listed = "".join(
                tag("dt", tag("code", html.escape(name))) + tag("dd", html.escape(f"{what} {details(x)}".strip()))
                for name, what, x in rows
            )
            head = tag("h2", f"{method.upper()} {tag('code', html.escape(path))}")
            parts.append(head + tag("p", html.escape(told["summary"])) + (tag("dl", listed) if rows else ""))
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{html.escape(info['title'])}</title><style>{STYLE}</style><main>"
        f"<h1>{html.escape(info['title'])}</h1><p>{html.escape(info['description'])} Errors are "
        '<code>{"error": "…"}</code>: one line that says what to do. For programs: '
        '<a href="openapi.json">openapi.json</a>. <a href="./">Try it</a>.</p>' + "".join(parts) + "</main></html>\n"
    )


STYLE = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;margin:0}"
    "main{max-width:48rem;margin:auto;padding:1rem}h2{font-size:1.1rem;margin:1.5rem 0 0}p{margin:.3rem 0}"
    "dl{margin:0 0 0 1rem}dd{margin:0 0 .3rem 1.5rem}"
)


def details(schema: dict[str, Any]) -> str:
    """Its type, its bounds and what it is when it is left out."""
    kinds = [schema, *schema.get("anyOf", ())]
    said = " or ".join(str(x) for kind in kinds for x in kind.get("enum", [kind.get("type", "null")]) if x != "null")
    for kind in kinds:
        if "maximum" in kind:
            least = f"from {kind['minimum']}" if "minimum" in kind else f"above {kind['exclusiveMinimum']}"
            said += f" {least} to {kind['maximum']}"
    return f"({said}{'; else ' + str(schema['default']).lower() if schema.get('default') is not None else ''})"
