"""Settings in the sections of a recipe, validated by the types in their dataclass: each error is one message
with its key. No torch.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .recipe import check_keys, is_number

Size = Union[int, tuple[int, int]]  # pixels: one number for both sides, or [height, width]  # noqa: UP007
Settings = TypeVar("Settings")

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}


def read_settings(kind: type[Settings], values: Any, what: str) -> Settings:
    """The dataclass `kind` of a plain dict; `what` is how a message names it, as "recipe's loss"."""
    return kind(**check_settings(values, get_type_hints(kind), what))


def check_settings(values: Any, kinds: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The values, if each is known and of its type; ValueError otherwise."""
    if not isinstance(values, Mapping):
        raise ValueError(f"Expected a JSON object as the {what}, got {values!r}. Write it as {{...}}.")
    check_keys(values, list(kinds), what)
    for name, value in values.items():
        if not fits(value, kinds[name]):
            raise ValueError(
                f"Expected {describe(kinds[name])} as {name} of the {what}, got {value!r}. Correct it, or "
                "leave it out."
            )
    return values


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of an annotated type: int, float, str, bool, Literal, tuples, mappings and
    unions of such.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        parts = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(parts) and all(
            fits(each, part) for each, part in zip(value, parts, strict=True)
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(each, inner[1]) for each in value.values())
    if kind is float:
        return is_number(value)
    return type(value) is kind


def describe(kind: Any) -> str:
    """An annotated type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(each) for each in inner)
    if origin is tuple:
        return f"a list of {'values' if inner[-1] is Ellipsis else len(inner)}, each {describe(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a JSON object" if inner[1] is Any else f"a JSON object, each value {describe(inner[1])}"
    return _WORDS.get(kind, str(kind))


LONGEST_SIDE = 16384  # pixels: beyond it a single sample would not fit into memory


def as_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) in pixels of one number for both, of a pair, or None of None."""
    if size is None:
        return None
    sides = (size, size) if type(size) is int else tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LONGEST_SIDE for side in sides):
        expected = f"one whole number from 1 to {LONGEST_SIDE}, or [height, width] of such"
        raise ValueError(f"Expected a size of {expected}, got {str(size)[:80]}. Give pixels.")
    return sides
