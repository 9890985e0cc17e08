"""What every entry point shares: where the configuration lies, how it starts, and errors told in one line."""

import difflib
import gc
import logging
import os
import re
import signal
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from lightning_utilities.core import imports
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from mnist_lit import run_folder
from mnist_lit.errors import UserError, in_one_line, is_stdout_closed
from mnist_lit.result import flatten
from mnist_lit.sweep.identity import job_name, sweep_name
from mnist_lit.version import __version__

PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; in a checkout it lies beside it.
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# What `ckpt=` may name.
CKPT = "a .ckpt file or a run's folder (outputs/train/DATE/TIME)"

# Extras in pyproject.toml that install plugins for Hydra.
EXTRAS = ("joblib", "optuna", "ray", "submitit")

# What torchmetrics imports if it is there; see `fast_imports`. The last is for plots of metrics, as in a notebook.
SLOW_TO_IMPORT = ("torchvision", "scipy", "matplotlib")

# How Hydra refuses a command line without naming the word that it means, by a ValueError or TypeError.
UNNAMED = (
    "Config group override must be",
    "argument of type 'NoneType' is not",  # in a list of options
    "The --resolve flag can only",
    "Only one of --run, --multirun",
)

# Goes to the run folder's log only (conf/hydra/default.yaml).
file_log = logging.getLogger("mnist_lit.file_only")


def run(task: Callable[[DictConfig], Any], config_name: str, *, paths: Sequence[str] = ()) -> None:
    """Run `task` with the configuration that Hydra composes from the command line.

    `paths` are keys whose values are taken literally: the folders of a sweep have commas and equals signs in their
    names, which Hydra would parse.
    Exits with code 2 and one line on stderr for errors of the user's, with code 1 and one line for others,
    whose traceback goes to the log. With HYDRA_FULL_ERROR=1 everything is raised as it is.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _leave_at_once)
    try:
        _run(task, config_name, paths)
    finally:
        if signal.getsignal(signal.SIGINT) is _leave_at_once:
            signal.signal(signal.SIGINT, before)


def is_multirun() -> bool:
    """Return whether the command line asks for a sweep."""
    return bool({"-m", "--multirun"} & set(sys.argv[1:]))


def _leave_at_once(number: int, frame: object) -> None:
    """Exit at once on a Ctrl-C during start-up, when libraries being imported would swallow it or fail in odd ways."""
    os.write(2, b"interrupted\n")
    try:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
            run_folder.remove_unused(
                Path(HydraConfig.get().runtime.output_dir), log=f"{HydraConfig.get().job.name}.log"
            )
    finally:  # whatever that ran into: Hydra may not have made the folder yet
        os._exit(128 + number)


def _run(task: Callable[[DictConfig], Any], config_name: str, paths: Sequence[str]) -> None:
    if "--version" in sys.argv[1:]:
        print(f"mnist-lit {__version__}")
        return
    register_resolvers()
    sys.argv[1:] = [_quoted(argument, paths) for argument in sys.argv[1:]]
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        _run_hydra(task, config_name)
        return

    def task_in_own_environment(cfg: DictConfig) -> Any:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # processes that the task starts should not inherit ours
        try:
            return task(cfg)
        except Exception as error:
            tell_and_exit(error)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    # Hydra prints errors over several lines and exits with 1, unless it is told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _run_hydra(task_in_own_environment, config_name)
    except KeyboardInterrupt:
        if not is_multirun():
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if str(error).startswith(UNNAMED):
            error = UserError(_refused_option(sys.argv[1:]) or f"{' '.join(sys.argv[1:])}: {error}")
        tell_and_exit(error)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)


def _run_hydra(task: Callable[[DictConfig], Any], config_name: str) -> None:
    with (
        patch.object(sys.modules["hydra.main"], "get_args_parser", _parser),
        patch.object(sys.modules["hydra._internal.hydra"], "ConfigLoaderImpl", _Loader),
    ):
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(task)()


class _Loader(ConfigLoaderImpl):
    """Composes once what Hydra composes twice, 80 ms each: to see whether a file sets `hydra.mode`, then to run."""

    kept: tuple[tuple[str | None, Sequence[str]], DictConfig] | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        if not validate_sweep_overrides:  # Hydra's first time, whose errors it ignores
            # As for a single run: a sweep's leaves out what is missing.
            cfg = super().load_configuration(config_name, overrides, RunMode.RUN, from_shell, False)
            self.kept = ((config_name, tuple(overrides)), cfg)
            return cfg
        chosen = [word for word in overrides[-1:] if word.startswith("hydra.mode=")]  # by Hydra, after the first time
        given = (config_name, tuple(overrides[: len(overrides) - len(chosen)]))
        if self.kept is None or self.kept[0] != given:
            return super().load_configuration(config_name, overrides, run_mode, from_shell, True)
        cfg, self.kept = self.kept[1], None
        parsed = OverridesParser.create().parse_overrides(overrides)
        self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        self._apply_overrides_to_config(parsed[len(given[1]) :], cfg)
        cfg.hydra.overrides.hydra.extend(chosen)
        return cfg


def _parser() -> ArgumentParser:
    """Return Hydra's parser of the command line, whose refusals are told as all others are."""
    # Since Python 3.14, argparse validates a help text when its option is added, and rejects the lazy one of Hydra
    # 1.3.8's --shell-completion.
    with patch.object(ArgumentParser, "_check_help", lambda parser, action: None, create=True):
        parser = get_args_parser()
    parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]  # KEY=VALUE may follow options
    parser.allow_abbrev = False  # `is_multirun` looks for --multirun
    parser.error = _refuse  # type: ignore[method-assign]
    return parser


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; settings are written KEY=VALUE, without dashes; --help has examples")


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration for a call from Python.

    Raises UserError for what Hydra cannot compose.
    """
    register_resolvers()
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return hydra.compose(config_name, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(describe(error)) from None  # Hydra's own traceback has fifty lines


def _quoted(argument: str, paths: Sequence[str]) -> str:
    """Put the value of KEY=VALUE into quotes, as Hydra writes them, if KEY is one of `paths`."""
    key, _, value = argument.partition("=")
    if key not in paths or not value or value[0] in "'\"":
        return argument
    # A backslash escapes only in front of a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), value)
    return f'{key}="{escaped}"'


@contextmanager
def only_in_the_log_file() -> Iterator[None]:
    """Keep what the package logs off the screen; it still goes to the run folder's log."""
    package = logging.getLogger("mnist_lit")
    package.handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    package.propagate = False
    try:
        yield
    finally:
        package.handlers = []
        package.propagate = True


@contextmanager
def fast_imports(*, is_program: bool = True) -> Iterator[None]:
    """Import torch and lightning without garbage collection, and without what nothing here uses.

    The imports create half a million objects that all stay. Collecting garbage while they load takes 1.4 seconds, so
    it waits, and in a program of ours they are left out of later collections, too. torchmetrics, which lightning
    brings, spends 1.3 seconds on SciPy and torchvision, for metrics of sounds and images, so both are reported missing
    meanwhile: a few of those metrics stay unavailable in this process. So does pyplot, in a program of ours.
    """
    if "lightning" in sys.modules:  # done before, as in every job of a sweep but the first
        _hear_interrupts()
        yield
        return
    has_requirement, has_package = imports.RequirementCache.__bool__, imports.package_available
    hidden = SLOW_TO_IMPORT if is_program else SLOW_TO_IMPORT[:-1]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with (
            patch.object(
                imports.RequirementCache,
                "__bool__",
                lambda cache: cache.requirement not in hidden and has_requirement(cache),
            ),
            patch.object(imports, "package_available", lambda name: name not in hidden and has_package(name)),
        ):
            yield
    finally:
        if is_program:
            gc.freeze()
        if was_enabled:
            gc.enable()
        _hear_interrupts()


def _hear_interrupts() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again: from here on, what runs ends in order by itself."""
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def freeze_once() -> None:
    """Leave what the first job has imported out of later collections, each of which would take 10 to 40 ms longer.

    Only once, so that the garbage of later jobs is still collected. It is not in the entry point, whose functions
    launchers pickle by value, which fails for one with a cache.
    """
    gc.freeze()


def require(cfg: DictConfig, key: str, what: str) -> None:
    """Raise UserError if a key was not given; `what` says what it may name."""
    if OmegaConf.is_missing(cfg, key):
        raise UserError(f"{key} is missing: add {key}=PATH, {what}")


def require_checkpoint(cfg: DictConfig) -> None:
    """Raise UserError if `ckpt` was not given or is not there: before torch is imported, which takes two seconds."""
    require(cfg, "ckpt", CKPT)
    if not Path(str(cfg.ckpt)).exists():
        raise UserError(f"ckpt={cfg.ckpt}: no such file or folder; name {CKPT}")


def register_resolvers() -> None:
    """Make the `${mnist_lit.NAME:...}` of the configuration files known to OmegaConf."""
    OmegaConf.register_new_resolver("mnist_lit.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("mnist_lit.sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("mnist_lit.in_multirun", in_multirun, replace=True)
    OmegaConf.register_new_resolver("mnist_lit.run_dir", run_folder.run_dir, use_cache=True, replace=True)


def in_multirun(value: Any, otherwise: Any) -> Any:
    """Return `value` in a job of a multirun, `otherwise` in a single run."""
    is_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    chosen = value if is_job else otherwise
    return OmegaConf.create(chosen) if isinstance(chosen, list) else chosen  # --resolve takes no plain list


def describe(error: BaseException) -> str:
    """Return the error in one line, Hydra's and OmegaConf's put into the user's words."""
    cause = error.__cause__
    if isinstance(error, InterpolationResolutionError):
        below = error.__context__
        while below is not None:
            if isinstance(below, UserError):  # of one of our resolvers
                return in_one_line(below)
            below = below.__context__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        known = [str(key) for key in cause.parent_node if not str(key).startswith("_") and key != "hydra"]
        new = f"; a new one needs a plus: +{cause.full_key}" if known and "." in str(cause.full_key) else ""
        hint = _similar_key(cause) or new
        return f"{cause.full_key} is not a key: there are {', '.join(known) or 'none'}{hint}"
    if isinstance(error, OverrideParseException):
        how = "write KEY=VALUE without spaces, in quotes where it has brackets: 'model.hidden_sizes=[256,64]'"
        return f"{error.override}: cannot be read; {how}"
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group in ("hydra/sweeper", "hydra/launcher") and (extra := option.split("_")[0]) in EXTRAS:
            return f"{group}={option}: not installed; pip install 'mnist-lit[{extra}]'"
        return _no_such_option(group, option, error.options)
    told = str(error)
    ambiguous = re.search(r"Ambiguous value for argument '(.+)'", told)
    if several := ambiguous or re.search(r"Sweep parameters '(.+)' requires --multirun", told):
        return f"{several[1]}: a single run takes one value; add -m for a sweep, or brackets for a list"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(str(cause if isinstance(cause, OmegaConfBaseException) else error).split())
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.filename else " ".join(str(error).split())
    return in_one_line(error)


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
    close = difflib.get_close_matches(option.lower(), options, n=1)
    hint = f"; did you mean {group}={close[0]}?" if close else ""
    return f"{group}={option}: no such option, there are {', '.join(options)}{hint}"


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _similar_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    """Say which key was meant, wherever it is below the one that was asked: `optimizer.lr` for `lr`."""
    plain: Any = OmegaConf.to_container(error.parent_node) if isinstance(error.parent_node, DictConfig) else {}
    above = str(error.full_key).rpartition(".")[0]
    by_last_part = {
        key.rpartition(".")[2]: key for key, _ in flatten(plain) if not key.startswith(("hydra.", "sweep."))
    }
    by_last_part |= {str(key): str(key) for key in plain}
    found = difflib.get_close_matches(str(error.full_key).rpartition(".")[2], by_last_part, n=1, cutoff=0.7)
    return f"; did you mean {'.'.join(filter(None, [above, by_last_part[found[0]]]))}?" if found else ""


def tell_and_exit(error: Exception) -> NoReturn:
    """Print the error in one line and exit: with code 2 where the user can fix it, else with 1."""
    sys.exit(tell(error))


def tell(error: Exception) -> int:
    """Print the error in one line, log it with its traceback where it is not the user's, return the exit code."""
    if isinstance(error, BrokenPipeError) and is_stdout_closed():
        return 128 + signal.SIGPIPE
    is_users = isinstance(error, UserError | HydraException | OmegaConfBaseException | OSError)
    line = f"error: {describe(error)}"
    if file_log.handlers:  # set up by Hydra once there is a run folder
        file_log.error(line, exc_info=None if is_users else error)
    for handler in [] if is_users else file_log.handlers:
        if isinstance(handler, logging.FileHandler):
            line += f" (where: {os.path.relpath(handler.baseFilename)})"
    print(line, file=sys.stderr)
    return 2 if is_users else 1
