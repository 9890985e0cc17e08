"""What a class or function takes, compared with what a configuration gives it."""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import typeguard

from mnist_lit.errors import UserError


def check_arguments(key: str, target: Callable[..., Any], node: dict[str, Any]) -> None:
    """Compare a node's keys and values with the signature of what it configures; `key` is the node's own.

    Raises UserError for the first key that `target` does not take, or value of another type than its hint.
    """
    names, takes_any, hints = _arguments_of(target)
    for name, value in node.items():
        if name in ("_target_", "_partial_", "_convert_", "_recursive_"):
            continue
        dotted = f"{key}.{name}" if key else name
        if name not in names and not takes_any:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"{dotted}={value}: not a key; {hint}{key or 'the configuration'} takes {', '.join(names)}")
        is_built_first = isinstance(value, dict) and "_target_" in value
        if name in hints and not is_built_first and not _is_a(value, hints[name]):
            raise UserError(f"{dotted}={value}: must be {_in_words(hints[name])}")


@functools.cache  # the hints of lightning.Trainer take as long to read as all else here
def _arguments_of(target: Callable[..., Any]) -> tuple[list[str], bool, dict[str, Any]]:
    """Return the names of what can be given by keyword, whether any other can too, and the type hints."""
    signature = inspect.signature(target)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    names = [name for name, p in signature.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # hints that only a type checker can read
        hints = {}
    return names, takes_any, hints


def _is_a(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False  # Python's bool is an int; a user's `true` is not a number
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        value = tuple(value)  # YAML has no tuples
    try:
        typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _in_words(hint: Any) -> str:
    """Say in YAML's words what a type hint allows; classes that YAML cannot write are left out."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if hint in plain:
        return plain[hint]
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(dict.fromkeys(map(str, options)))
    if origin in (typing.Union, types.UnionType):
        words = " or ".join(filter(None, map(_in_words, options)))
        return " or ".join(dict.fromkeys(words.split(" or ")))  # an option may stand in two literals
    if origin is tuple:
        return f"a list [{', '.join(map(_in_words, options))}]"
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return "a group of keys"
    if isinstance(origin, type) and issubclass(origin, typing.Iterable):
        return f"a list, each {_in_words(options[0])}"
    return ""
