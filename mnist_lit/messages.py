"""Errors in the user's words, each in one line."""

import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from mnist_lit.composition import CONF_DIR
from mnist_lit.errors import UserError, drop_closed_stdout, in_one_line, interruption_behind
from mnist_lit.result import flatten

# Extras in pyproject.toml that install plugins for Hydra.
EXTRAS = ("joblib", "optuna", "ray", "submitit")

# How Hydra refuses a command line without naming the word that it means, by a ValueError or TypeError.
UNNAMED = (
    "Config group override must be",
    "argument of type 'NoneType' is not",  # in a list of options
    "The --resolve flag can only",
    "Only one of --run, --multirun",
    "invalid literal for int()",  # a key within a list
)

# Keys that go by other names elsewhere, too far from ours to tell.
MEANT = {
    "checkpoint": "ckpt",
    "device": "trainer.accelerator",
    "epoch": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "gpu": "trainer.accelerator",
    "learning_rate": "optimizer.lr",
}

OPTIONS = [path for path in CONF_DIR.glob("*/*.yaml") if path.parent.name != "hydra"]

# Goes to the run folder's log only (conf/hydra/default.yaml).
file_log = logging.getLogger("mnist_lit.file_only")


def describe(error: BaseException) -> str:
    """Return the error in one line, Hydra's and OmegaConf's put into the user's words."""
    cause = error.__cause__
    if isinstance(error, InterpolationResolutionError):
        below = error.__context__
        while below is not None:
            if isinstance(below, UserError | OSError):  # of one of our resolvers
                return describe(below)
            below = below.__context__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        known = [str(key) for key in cause.parent_node if not str(key).startswith("_") and key != "hydra"]
        new = f"; a new one needs a plus: +{cause.full_key}" if known and "." in str(cause.full_key) else ""
        hint = _options_with(cause) or _similar_key(cause) or new
        return f"{cause.full_key} is not a key: there are {', '.join(known) or 'none'}{hint}"
    if isinstance(error, OverrideParseException):
        how = "write KEY=VALUE without spaces, in quotes where it has brackets: 'model.hidden_sizes=[256,64]'"
        word = str(error.override)
        if any(letter.isalpha() and not letter.isascii() for letter in word):
            how = "a value with letters beyond ASCII needs quotes of its own: 'KEY=\"VALUE\"'"
        groups = [path.parent.name for path in OPTIONS if path.stem == word]
        if "=" not in word and os.access(word, os.F_OK):
            how = "it needs a key: ckpt=, images= or resume="
        elif len(groups) == 1:
            how = f"did you mean {groups[0]}={word}?"
        return f"{word}: cannot be read; {how}"
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        parts = str(error.missing_cfg_file).split("/")
        # An option may be a path, by mistake; a group is one only within hydra/.
        length = 2 if parts[0] == "hydra" and len(parts) > 2 else 1
        group, option = "/".join(parts[:length]), "/".join(parts[length:])
        if group in ("hydra/sweeper", "hydra/launcher") and (extra := option.split("_")[0]) in EXTRAS:
            return f"{group}={option}: not installed; pip install 'mnist-lit[{extra}]'"
        return _no_such_option(group, option, error.options)
    told = str(error)
    ambiguous = re.search(r"Ambiguous value for argument '(.+)'", told)
    if several := ambiguous or re.search(r"Sweep parameters '(.+)' requires --multirun", told):
        return f"{several[1]}: a single run takes one value; add -m for a sweep, or brackets for a list"
    if told.startswith("Could not delete 'callbacks"):
        return "~callbacks: takes a list of options; callbacks=[] leaves out all, ~callbacks.NAME one"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(str(cause if isinstance(cause, OmegaConfBaseException) else error).split())
    if isinstance(error, OSError):
        return ": ".join(map(str, filter(None, [error.strerror, error.filename]))) or in_one_line(error)
    return in_one_line(error)


def named(error: Exception, arguments: Sequence[str]) -> Exception:
    """Return the error, or one that names the word of the command line that is meant, where Hydra's does not."""
    if str(error).startswith("Unable to configure handler") and isinstance(error.__cause__, OSError):
        return error.__cause__  # of the log's file
    if isinstance(error, OSError):  # of a folder that Hydra makes
        meant = [word for word in arguments if word.partition("=")[2] == error.filename]
        return UserError(f"{meant[0]}: {error.strerror}; name another folder") if meant else error
    if not str(error).startswith(UNNAMED):
        return error
    return UserError(_refused_option(arguments) or f"{' '.join(arguments)}: {error}")


def _refused_option(arguments: Sequence[str]) -> str | None:
    """Find the GROUP=OPTION whose option, or one in its list, is null, a truth value or a number."""
    for argument in arguments:
        group, _, options = argument.partition("=")
        for option in options.strip("[]").split(",") if (CONF_DIR / group).is_dir() else []:
            if re.fullmatch("null|true|false|[-+.0-9].*", option.strip().lower()):
                return _no_such_option(group, option.strip())
    return None


def _no_such_option(group: str, option: str, options: Sequence[str] | None = None) -> str:
    options = options or _options(group)  # Hydra gives none for a group that takes a list
    asked = option.lower()
    close = difflib.get_close_matches(asked, options, n=1) or [
        known for known in options if known != "none" and (known in asked or (len(asked) > 2 and asked in known))
    ]
    new = f"to add one, write DIR/{group}/NAME.yaml and pass --config-dir DIR"
    hint = f"did you mean {group}={close[0]}?" if close else new
    return f"{group}={option}: no such option, there are {', '.join(options)}; {hint}"


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _options_with(error: ConfigKeyError | ConfigAttributeError) -> str:
    """Say which options have the key that the chosen ones lack: `optimizer=sgd` for `optimizer.momentum`."""
    if not isinstance(error.parent_node, DictConfig) or "trainer" not in error.parent_node._get_root():
        return ""  # only a training has options
    key = str(error.full_key)
    group, _, name = key.partition(".")
    if group == "hydra":
        group, name = "sweep", key  # whose files set keys of Hydra's
    found = [f"{group}={option}" for option in _options(group) if name and name in _keys(group, option)]
    return f"; {', '.join(found)} {'have' if found[1:] else 'has'} it" if found else ""


def _keys(group: str, option: str) -> set[str]:
    """Return the dotted keys that an option's file sets, and those above them."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / group / f"{option}.yaml"))
    others = [other for other in content.pop("defaults", []) if isinstance(other, str) and other in _options(group)]
    leaves = [key.split(".") for key, _ in flatten(content)]
    own = {".".join(parts[: length + 1]) for parts in leaves for length in range(len(parts))}
    return own.union(*(_keys(group, other) for other in others))


def _similar_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    """Say which key was meant, wherever it is below the one that was asked: `optimizer.lr` for `lr`."""
    plain: Any = OmegaConf.to_container(error.parent_node) if isinstance(error.parent_node, DictConfig) else {}
    above, _, asked = str(error.full_key).rpartition(".")
    keys = [key for key, _ in flatten(plain)]
    if asked == "name" and "sweep.name" in keys:
        return "; hydra.run.dir=FOLDER names a run, sweep.name=NAME a sweep"
    if asked == "early_stopping" and "callbacks.early_stopping.patience" not in keys and "callbacks" in plain:
        return "; callbacks=early_stopping brings it"
    meant = MEANT.get(asked, "")
    if meant in ([key if not above else f"{above}.{key}" for key in keys]):
        return f"; did you mean {meant}?"
    # Not what Hydra or a sweep fills in itself, nor what resume= relies on.
    hidden = ("hydra.", "sweep.keys", "sweep.name", "callbacks.last.")
    by_last_part = {key.rpartition(".")[2]: key for key in keys if not key.startswith(hidden)}
    by_last_part |= {str(key): str(key) for key in plain}
    found = difflib.get_close_matches(asked, by_last_part, n=1, cutoff=0.7)
    return f"; did you mean {'.'.join(filter(None, [above, by_last_part[found[0]]]))}?" if found else ""


def tell_and_exit(error: Exception) -> NoReturn:
    """Print the error in one line and exit: with code 2 where the user can fix it, else with 1."""
    sys.exit(tell(error))


def tell(error: Exception) -> int:
    """Print the error in one line, log it with its traceback where it is not the user's, return the exit code."""
    if isinstance(error, BrokenPipeError) and drop_closed_stdout():
        return 128 + signal.SIGPIPE
    if (end := interruption_behind(error)) is not None:
        return end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 128 + signal.SIGINT
    is_users = isinstance(error, UserError | HydraException | OmegaConfBaseException | OSError | YAMLError)
    line = f"error: {describe(error)}"
    is_told = is_users and not (isinstance(error, OSError) and error.filename is None)
    if file_log.handlers:  # set up by Hydra once there is a run folder
        file_log.error(line, exc_info=None if is_told else error)
    for handler in [] if is_told else file_log.handlers:
        if isinstance(handler, logging.FileHandler):
            line += f" (traceback: {os.path.relpath(handler.baseFilename)})"
    print(line, file=sys.stderr)
    return 2 if is_users else 1
