"""What a class or function takes, compared with what a configuration gives it."""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import typeguard

from mnist_lit.errors import UserError
from mnist_lit.notation import in_yaml, parsed

# What a node may hold for Hydra itself.
HYDRAS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
# What is not known yet where a configuration is read.
LATER = {
    "params": "add _partial_: true, the weights come later",
    "optimizer": "add _partial_: true, the optimizer comes later",
    "input": "a function cannot be loaded again; take a class, such as torch.nn.CrossEntropyLoss",
}


def check_arguments(
    key: str, target: Callable[..., Any], node: dict[str, Any], *, given: Mapping[str, str] | None = None
) -> None:
    """Compare a node's keys and values with the signature of what it configures; `key` is the node's own.

    Raises UserError for the first key that `target` does not take, value of another type than its hint, or key that is
    missing; none is with `_partial_` or `_args_`. Arguments in `given` come from elsewhere, which it says: to set them
    here is an error, too.
    """
    given = given or {}
    names, required, takes_any, hints = _arguments_of(target)
    for name, value in node.items():
        if name in HYDRAS:
            continue
        dotted = f"{key}.{name}" if key else name
        seen = f"{dotted}={in_yaml(value)}"
        if name not in names and not takes_any:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            out = f"; leave it out, or write ~{dotted} where a file sets it" if key else ""
            raise UserError(
                f"{seen}: not a key; {hint}{key or 'the configuration'} takes {', '.join(names) or 'none'}{out}"
            )
        if name in given:
            raise UserError(f"{seen}: would have no effect; it is set by {given[name]}")
        if name in hints and not _is_built_first(value) and not _is_a(value, hints[name]):
            raise UserError(f"{seen}: must be {_in_words(hints[name])}{_hint(dotted, value, hints[name])}")
    if node.get("_partial_") or "_args_" in node:
        return
    for name in required:
        if name not in node and name not in given:
            dotted = f"{key}.{name}" if key else name
            of_function = "" if inspect.isclass(target) else "if it gets that later, add _partial_: true"
            hint = f"; {told}" if key and (told := LATER.get(name, of_function)) else ""
            raise UserError(f"{dotted} is missing: {key or 'the configuration'} needs it{hint}")


@functools.cache  # the hints of lightning.Trainer take as long to read as all else here
def _arguments_of(target: Callable[..., Any]) -> tuple[list[str], list[str], bool, dict[str, Any]]:
    """Return the names of all arguments, and of those without a default, whether others can be named, and the hints."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):  # of some that are written in C
        return [], [], True, {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # hints that only a type checker can read
        hints = {}
    return names, required, takes_any, hints


def _is_built_first(value: Any) -> bool:
    """Return whether Hydra makes objects of a value, or within it, so that its type is not known yet."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_built_first, value.values()))
    return isinstance(value, list) and any(map(_is_built_first, value))


def _is_a(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False  # Python's bool is an int; a user's `true` is not a number
    if isinstance(value, str) and typing.get_origin(hint) in (Sequence, Iterable):
        return False  # Python's text is a sequence of letters
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        value = tuple(value)  # YAML has no tuples
    try:
        typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _hint(key: str, value: Any, hint: Any) -> str:
    """Say what was probably meant by a value of another type."""
    if key == "trainer.max_time":
        return "; write DD:HH:MM:SS, such as 00:00:10:00"
    if isinstance(value, list):
        is_sweep = value and all(_is_a(one, hint) for one in value)
        return f"; to sweep over several, -m {key}={','.join(map(str, value))}" if is_sweep else ""
    is_group = "." not in key and any(typing.get_origin(one) is dict for one in (hint, *typing.get_args(hint)))
    if isinstance(value, str) and is_group:
        return f"; to choose an option within a file, defaults: [override /{key}: {value}]"
    if isinstance(value, str) and _is_a(parsed(value), hint):
        return "; leave out the quotes"
    return f"; write [{value}]" if _is_a([value], hint) else ""


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
        words = " or ".join(dict.fromkeys(words.split(" or ")))  # an option may stand in two literals
        return "null or an object that a _target_ names" if words == "null" else words
    if origin is tuple and options and options[-1] is not Ellipsis:
        return f"a list [{', '.join(map(_in_words, options))}]"
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return "a group of keys"
    if isinstance(origin, type) and issubclass(origin, typing.Iterable):
        each = _in_words(options[0]) if options else ""
        return f"a list, each {each}" if each else "a list"
    return ""
