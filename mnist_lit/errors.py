"""The two ways a run can end early that are not bugs, and what every entry point asks of an error."""

import os
import select
import sys


class UserError(Exception):
    """Something the user can fix: one line saying what was wrong, the value seen and what to do next.

    Entry points print it and exit with code 2.
    """


class DivergedError(Exception):
    """The loss became NaN or infinite; the run is recorded with status ``diverged``."""


def in_one_line(error: BaseException) -> str:
    """Return the error's message without line breaks; the type's name leads where it is not one of ours."""
    message = " ".join(str(error).split())
    return message if isinstance(error, UserError | DivergedError) else f"{type(error).__name__}: {message}"


def is_of_ctrl_c(error: BaseException | None) -> bool:
    """Return whether a library failed at what a Ctrl-C had left half done, as OmegaConf does."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def drop_closed_stdout() -> bool:
    """Send what is printed to nowhere if whoever reads it has gone; return whether that was so."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in watched.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
