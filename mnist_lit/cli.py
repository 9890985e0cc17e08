"""What every entry point shares: how it starts Hydra, and what it may ask of the command line."""

import logging
import os
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mnist_lit import run_folder, startup
from mnist_lit.composition import CONF_DIR, Loader, register_resolvers
from mnist_lit.errors import UserError
from mnist_lit.messages import describe, named, tell_and_exit
from mnist_lit.result import newest_run
from mnist_lit.version import __version__

# Keys whose values are taken literally: the folders of a sweep have commas and equals signs in their names, which Hydra
# would parse.
PATHS = ("ckpt", "images", "output", "resume")
CAN_BE_NULL = ("output", "resume")
MISSING = "{0} is missing: add {0}=PATH,"
# Hydra composes for one at a time.
ONE_AT_A_TIME = threading.Lock()


@startup.prompt_interrupts()
def run(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` with the configuration that Hydra composes from the command line.

    Exits with code 2 and one line on stderr for errors of the user's, with code 1 and one line for others,
    whose traceback goes to the log. With HYDRA_FULL_ERROR=1 everything is raised as it is.
    """
    if "--version" in sys.argv[1:]:
        print(f"mnist-lit {__version__}")
        return
    register_resolvers()
    sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        _run_hydra(task, config_name)
        return
    logging.raiseExceptions = False  # a full disk is told once, not for every line of a log

    def telling(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except Exception as error:
            tell_and_exit(error)

    try:
        _run_hydra(telling, config_name)
    except KeyboardInterrupt:
        if not is_multirun():
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        tell_and_exit(named(error, sys.argv[1:]))


def run_with_checkpoint(task: Callable[..., None], config_name: str) -> None:
    """Call `task` with the configuration's keys, `ckpt` among them, as arguments, once they are found to fit.

    Errors of the user's leave no folder. What is not there is told before torch is imported, which takes two seconds.
    """

    def check_and_run(cfg: DictConfig) -> None:
        # export and demo have no folder of their own: Hydra's is the current one (conf/hydra/no_folder.yaml).
        is_own = "run_dir" in {*cfg}
        with run_folder.no_folder_left(Path(HydraConfig.get().runtime.output_dir)) if is_own else nullcontext():
            if not cfg.get("ckpt") or not Path(str(cfg.ckpt)).exists():
                told = f"ckpt={cfg.ckpt}: no such file or folder; name" if cfg.get("ckpt") else MISSING.format("ckpt")
                raise UserError(f"{told} a .ckpt file or a run's folder ({newest_run('checkpoints/*.ckpt')})")
            if "images" in {*cfg} and not cfg.get("images"):
                raise UserError(f"{MISSING.format('images')} a picture, a folder or a glob")
            with startup.fast_imports():
                from mnist_lit.build import check_keys
            task(**check_keys(task, cfg))

    run(check_and_run, config_name)


def is_multirun() -> bool:
    """Return whether the command line, or a file that it names, asks for a sweep."""
    is_known = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return is_known or bool({"-m", "--multirun"} & set(sys.argv[1:]))


def _run_hydra(task: Callable[[DictConfig], Any], config_name: str) -> None:
    def run_and_raise(call: Callable[[], Any]) -> Any:
        return call()

    with (
        patch.object(sys.modules["hydra.main"], "get_args_parser", _parser),
        # Hydra would print errors over several lines and exit with 1.
        patch.object(sys.modules["hydra._internal.utils"], "run_and_report", run_and_raise),
        patch.multiple("hydra._internal.hydra", ConfigLoaderImpl=Loader, run_and_report=run_and_raise),
    ):
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(task)()


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


def compose(config_name: str, overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Compose a configuration for a call from Python, with the options in `config_dir` besides ours.

    The caller may use Hydra, too. Raises UserError for what Hydra cannot compose.
    """
    register_resolvers()
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UserError(f"config_dir={config_dir}: no such folder")
        folder = QuotedString(f"file://{config_dir.absolute()}", Quote.double).with_quotes()
        overrides = [*overrides, f"hydra.searchpath=[{folder}]"]
    with ONE_AT_A_TIME:
        before = get_gh_backup()
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
                return hydra.compose(config_name, list(overrides))
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(describe(named(error, overrides))) from None  # Hydra's own traceback has fifty lines
        finally:
            restore_gh_from_backup(before)


def _quoted(argument: str) -> str:
    """Put the value of KEY=VALUE into quotes if KEY is one of PATHS; ~/ is the user's folder, whichever shell it is."""
    key, _, value = argument.partition("=")
    is_in_home = value.startswith("~/") and (key in PATHS or "," not in value)
    value = str(Path(value).expanduser()) if is_in_home else value
    if argument.startswith("--"):
        return f"{key}={value}" if is_in_home else argument
    is_none = value == "" or (value == "null" and key in CAN_BE_NULL)
    if not (is_in_home or key in PATHS) or is_none or value[0] in "'\"":
        return argument
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


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
