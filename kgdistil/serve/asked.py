"""What may be asked over HTTP: the models that requests are held to, and that the OpenAPI description is made of."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from kgdistil.answer.calibration import LEVELS
from kgdistil.errors import ConfigError

Label = str | int
By = Annotated[Literal["label", "id"], Field(description="Whether labels or numbers are given.")]
MANY = "How many, at most; 10 where it is left out, and no more than the server gives."
Unseen = Annotated[bool, Field(description="Answer about what stands in no training triple, too.")]


def given(what: str) -> Any:
    return Field(default=None, description=f"{what}: a label; a name that only one has; with by=id a number from 0.")


class Asked(BaseModel):
    """Refuses what it does not know, so that a slip of the pen is no silent default."""

    model_config = ConfigDict(extra="forbid")


class Choice(Asked):
    """Which answers may come, and how many."""

    k: int | None = Field(default=None, ge=1, description=f"{MANY} With coverage as many as a set has.")
    by: By = "label"
    new: bool = Field(default=False, description="Leave out what the graph says already.")
    typed: bool = Field(default=False, description="Only entities that training saw in that place of that relation.")
    candidates: list[Label] | None = Field(default=None, description="Only these entities.")
    probability: bool = Field(default=False, description="Add how likely each answer is true, calibrated.")
    coverage: float | None = Field(
        default=None, gt=0, le=LEVELS[-1], description="As many answers as hold the missing one so often, such as 0.9."
    )
    shortlist: int | None = Field(
        default=None, ge=1, description="Of a nested student: rank all entities by the first codes, so many by all."
    )
    unseen: Unseen = False


class Query(Choice):
    """Two of head, relation and tail; the third is what is asked for."""

    head: Label | None = given("Head")
    relation: Label | None = given("Relation")
    tail: Label | None = given("Tail")


class Batch(Choice):
    """The same, or many queries: lists of one length in place of labels; a single label holds for all."""

    head: Label | list[Label] | None = given("Head, or a list")
    relation: Label | list[Label] | None = given("Relation, or a list")
    tail: Label | list[Label] | None = given("Tail, or a list")


class Likeness(Asked):
    """An entity, whose likes are asked for."""

    entity: Label
    k: int | None = Field(default=None, ge=1, description=MANY)
    by: By = "label"
    unseen: Unseen = False


class Beginning(Asked):
    """How a label, or a readable name, begins."""

    prefix: str = Field(default="", description="How it begins; upper and lower case differ.")
    kind: Literal["entity", "relation"] = "entity"
    k: int | None = Field(default=None, ge=1, description=MANY)


def once(pairs: list[tuple[str, Any]]) -> None:
    """ConfigError where a JSON object names a field twice, of which a reader takes the last."""
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{twice[0]} is given {names.count(twice[0])} times; give it once, or a list")


def parse(model: type[Asked], given: QueryParams | bytes) -> dict[str, Any]:
    """What a request asks.

    Args:
        given: the parameters behind the question mark, or JSON.
    Raises:
        ConfigError: not what the model says.
    """
    try:
        if isinstance(given, bytes):
            asked = model.model_validate_json(given, strict=True).model_dump()
            json.loads(given, object_pairs_hook=once)
            return asked
        values: dict[str, Any] = dict(given)
        if len(values) < len(given.multi_items()) or "candidates" in values:
            for name in values:
                found = given.getlist(name)
                if name == "candidates":
                    values[name] = found
                elif len(found) > 1:
                    raise ConfigError(f"{name} is given {len(found)} times; give it once, or a list by POST")
        asked = model.model_validate(values).model_dump()
        return numbered(asked) if asked.get("by") == "id" else asked
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:1])) or "the request"
        raise ConfigError(
            f"{place}: {first['msg'][:1].lower()}{first['msg'][1:200]}; /docs says what is right"
        ) from None


def numbered(asked: dict[str, Any]) -> dict[str, Any]:
    """Numbers from 0 that came as text, as all does behind a question mark."""
    whole = lambda x: int(x) if isinstance(x, str) and x.isascii() and x.isdigit() and len(x) < 19 else x
    places: dict[str, Any] = {
        name: whole(asked[name]) for name in ("head", "relation", "tail", "entity") if name in asked
    }
    if asked.get("candidates"):
        places["candidates"] = [whole(x) for x in asked["candidates"]]
    return {**asked, **places}
