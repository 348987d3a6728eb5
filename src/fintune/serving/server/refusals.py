"""A body that is no request, in one sentence: what is wrong with which field.

Enters: pydantic's errors, one for each form that a field may have. Leaves: a sentence about the field that lies
deepest, as a value that was meant for one form gets furthest in that one. Names of fields come from outside: they are
shortened and in ASCII; nothing else of the request is repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_SHOULD = re.compile(r"\w+ should (.+)")
_OBJECT = frozenset({"model_type", "model_attributes_type", "dict_type"})


def explained(errors: Sequence[Mapping[str, Any]], body: Any) -> str:
    """What is wrong with a body.

    Args:
        errors: of ``RequestValidationError``.
        body: as JSON was read; text where it could not be.
    """
    if errors[0]["type"] == "json_invalid":
        return f"The body is not JSON ({_ascii(errors[0].get('ctx', {}).get('error', 'it ends too soon'))})."
    fields = [(_field(error, body), error) for error in errors]
    deepest = max((field for field, _ in fields), key=len)
    alike = [error for field, error in fields if field == deepest]
    where = _ascii(".".join(map(str, deepest)))[:120] or "The body"
    return f"{where}{_told(alike)}."


def _field(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """The keys that lead to what is wrong; pydantic names the forms it tried in between."""
    at, path = body, list[str | int]()
    for part in error["loc"][1:]:
        inside = (isinstance(at, dict) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        )
        if inside:
            at = at[part]
            path.append(part)
    match error["type"]:
        case "missing" if len(error["loc"]) > 1:
            path.append(error["loc"][-1])
        case "union_tag_invalid" | "union_tag_not_found":
            path.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _told(errors: Sequence[Mapping[str, Any]]) -> str:
    """The end of the sentence that begins with the field."""
    first = errors[0]
    match first["type"]:
        case "missing" | "union_tag_not_found":
            return " is missing"
        case "extra_forbidden":
            return " is no field that is served here"
        case "none_required":
            return " is not served here: leave it out, or send null"
        case "union_tag_invalid":
            return f" should be one of {first['ctx']['expected_tags']}"
        case "value_error":
            return f": {first['msg'].removeprefix('Value error, ')}"
    wanted = [_wanted(error) for error in errors]
    if all(want.startswith("be ") for want in wanted):
        wanted = ["be " + " or ".join(dict.fromkeys(want[3:] for want in wanted))]
    return " should " + " or ".join(dict.fromkeys(wanted))


def _wanted(error: Mapping[str, Any]) -> str:
    if error["type"] in _OBJECT:
        return "be an object"
    if error["type"] == "string_unicode":
        return "be Unicode text without halves of surrogate pairs"
    found = _SHOULD.match(error["msg"])
    return _ascii(found[1]) if found else "be something else"


def _ascii(text: Any) -> str:
    return json.dumps(str(text))[1:-1]
