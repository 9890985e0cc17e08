"""Report on a sweep: `python -m mnist_lit.report outputs/sweeps/NAME`."""

import argparse
import glob
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_lit.errors import UserError, drop_closed_stdout
from mnist_lit.sweep.ledger import LEDGER, read_jobs

DESCRIPTION = """\
Say what a sweep found: settings ranked by validation with their spread over seeds, which of them cannot be
told apart from the best, what each key does, and pictures. Writes results.csv, report.md, report.html and
figures/.
"""
EPILOG = """\
examples
  python -m mnist_lit.report outputs/sweeps/NAME
  python -m mnist_lit.report 'outputs/sweeps/lr*' --output outputs/lr_report
  python -m mnist_lit.report outputs/train/2026-11-24 --metric val/loss
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for, and print its short form.

    Exits with code 2 and one line on stderr for errors of the user's.
    """
    options = _parser().parse_args(arguments)
    try:
        folders = find_folders(options.folders)
        output = options.output or common_folder(folders)
        # Here, so that --help and refusals come at once.
        from mnist_lit.reports.report import write_report

        not_begun = [
            run_dir for folder in folders for job in read_jobs(folder) if not (run_dir := folder / job.name).exists()
        ]
        print(write_report([*folders, *not_begun], output, metric=options.metric))
    except UserError as error:
        sys.exit(_refuse(str(error)))
    except UnicodeEncodeError as error:
        sys.exit(_refuse(f"{error.object!a}: is not UTF-8; rename that folder"))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and drop_closed_stdout():
            sys.exit(128 + signal.SIGPIPE)
        sys.exit(_refuse(f"{error.strerror}: {error.filename or output}"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def find_folders(patterns: Sequence[str]) -> list[Path]:
    """Return the folders that names or globs stand for.

    Raises UserError for one that stands for none, and for a folder above several sweeps, which have little in common.
    """
    folders = []
    for pattern in patterns:
        # A run's name may hold the characters of a glob: hidden_sizes=[256,64].
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207 (absolute ones too)
        if not (directories := [Path(path) for path in found if Path(path).is_dir()]):
            raise UserError(f"{pattern}: no such folder; name a sweep's, outputs/sweeps/NAME")
        folders += directories
    for folder in folders:
        if (folder / "sweeps").is_dir() or (folder / "train").is_dir():
            raise UserError(f"{folder}: holds more than runs; name {folder}/train, or a sweep's, {folder}/sweeps/NAME")
        sweeps = sorted(ledger.parent.name for ledger in folder.glob(f"*/{LEDGER}"))
        if len(sweeps) > 1:
            raise UserError(
                f"{folder}: holds {len(sweeps)} sweeps; name one of {', '.join(sweeps)}, or a glob of several"
            )
    return folders


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder itself, or the closest one above all of several."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.relpath(os.path.commonpath([path.resolve() for path in folders])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnist_lit.report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a sweep's folder, a run's, or a quoted glob of them"
    )
    parser.add_argument(
        "--metric",
        default="val/acc",
        help="what to rank by: of a loss the lowest, of others the highest; never test/* (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: FOLDER, or the one above all of several)",
    )
    return parser


def _refuse(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
