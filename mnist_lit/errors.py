"""The two ways a run can end early that are not bugs, and what every entry point asks of an error."""

import os
import select
import signal
import sys

ENDED_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes, as shells have them


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


def interruption_behind(error: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """Return the Ctrl-C or SIGTERM that left half done what a library then failed at, as OmegaConf and Lightning do."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in ENDED_BY_SIGNAL):
            return error
        error = error.__context__
    return None


def drop_closed_stdout() -> bool:
    """Send what is printed to nowhere if whoever reads it has gone; return whether that was so."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in watched.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
