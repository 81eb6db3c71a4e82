"""One error of a recipe in words: which key, what was found, what was expected."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from flows.datasets.kinds import KINDS
from flows.regions import TAGS, GeneratedRegions, RegionSpec
from pipeline.errors import InputError

# pydantic also names the branch of a union that it tried; people wrote no such key.
BRANCHES = {*KINDS, *TAGS, "literal['visible']", "constrained-float", "float", "literal['auto']", "constrained-int",
            "int", "str", "ModelChoice"}  # fmt: skip
TAGGED: dict[str, type[BaseModel]] = {**KINDS, TAGS[1]: GeneratedRegions, TAGS[2]: RegionSpec}


def first_error(error: ValidationError, recipe: type[BaseModel]) -> InputError:
    """The most telling of pydantic's errors: a misspelt key before the missing one it leaves behind."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]

    # pydantic also names the branch of a union that it tried; people wrote no such key.
    def where(problem: Any) -> tuple[str, ...]:
        return tuple(str(part) for part in problem["loc"] if part not in BRANCHES and not _is_branch(str(part)))

    location = where(problem)
    field = "recipe: " + (".".join(location) or "method")
    if problem["type"] == "extra_forbidden":
        allowed = _keys_beside(tuple(problem["loc"]), recipe)
        near = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5)
        action = f"Did you mean {near[0]!r}?" if near else ""
        return InputError(field, f"the unknown key {location[-1]!r}", f"one of {', '.join(allowed)}", action)
    if problem["type"] == "missing":
        return InputError(field, "nothing", "a value; this key is required")
    beside = [p["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for p in problems
              if where(p) == location]  # fmt: skip
    expected = " or ".join(dict.fromkeys(_plainly(text) for text in beside))
    found = problem["input"]
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field, expected = field + ".kind", f"one of {', '.join(KINDS)}"
        found = found.get("kind", "nothing") if isinstance(found, dict) else found
    return InputError(field, _short(found), expected)


def _short(found: object) -> str:
    text = repr(found) if isinstance(found, str | int | float | list | tuple | None) else type(found).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _plainly(expected: str) -> str:
    """What pydantic expects, in YAML's words."""
    expected = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", expected)
    expected = re.sub(r"(Dictionary|Tuple) should have at least 1 item.*", "at least 1 of them", expected)
    return expected.replace("a valid tuple", "a list")


def _is_branch(part: str) -> bool:
    """Whether pydantic made up this part of a location: `tuple[...]`, `function-before[...]` and the like."""
    return "[" in part


def _keys_beside(location: tuple[int | str, ...], recipe: type[BaseModel]) -> list[str]:
    """The keys that may stand where an unknown one was found."""
    model = recipe
    for part in location[:-1]:
        if part in TAGGED:
            model = TAGGED[str(part)]
            continue
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
