"""mnist-lit: MNIST with PyTorch Lightning, Hydra and TensorBoard, done properly.

    from mnist_lit import load_model, train

    run = train("optimizer.lr=0.1", "trainer.max_epochs=10")
    model = load_model(run.run_dir)  # uint8 images [B, 28, 28] -> probabilities [B, 10]

Both import what takes seconds when they are called. Importing the entry point `mnist_lit.train`, which needs the
command line, replaces the function by that module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_lit.version import __version__

if TYPE_CHECKING:
    from mnist_lit.predictor import Predictor
    from mnist_lit.run import Run

__all__ = ["__version__", "load_model", "train"]


def train(*overrides: str, run_dir: str | Path | None = None, config_dir: str | Path | None = None) -> "Run":
    """Train as `python -m mnist_lit.train OVERRIDES` does, and return the run with its `metrics` and `run_dir`.

    `run_dir` is its folder, a new one below outputs/train if it is left out. `config_dir` holds options of your own,
    as --config-dir does. Raises UserError for what the command line refuses. A loss that diverges raises nothing: see
    `run.result.status`. One run at a time: torch's random numbers are the process's, so that runs in several threads
    would share them.
    """
    from mnist_lit import cli, run_folder, startup
    from mnist_lit.errors import UserError

    with startup.fast_imports(is_program=False):  # what else this process holds is the caller's
        from mnist_lit.build import build
    for word in overrides:
        if not isinstance(word, str):
            raise UserError(f"{word!r}: each override is a text of its own, as in train('data=sample', 'seed=1')")
        if word.lstrip("+~").startswith(("hydra", "run_dir", "sweep", "-")):
            told = "not from Python, where run_dir= names the folder, config_dir= that of your options"
            raise UserError(f"{word}: {told}, and a loop makes a sweep")
    cfg = cli.compose("train", overrides, None if config_dir is None else Path(config_dir))
    if cfg.resume is not None:
        command = f"python -m mnist_lit.train resume={cfg.resume}"
        raise UserError(f"resume={cfg.resume}: from Python, a run cannot go on; use {command}")
    folder = Path(run_dir or run_folder.new_folder("outputs/train")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    cfg.run_dir = str(folder)
    with run_folder.held(folder), run_folder.no_folder_left(folder):
        run_folder.check_is_new(folder)
        given = [f"--config-dir={config_dir}", *overrides] if config_dir is not None else overrides
        run = build(cfg, given)
        if run.trainer.world_size > 1:
            raise UserError("trainer.devices: from Python, set it to 1; the command line can train on several")
        run.prepare()
        run_folder.write_config(cfg, folder, given)
        run.execute(test=cfg.test)
    return run


def load_model(path: str | Path, *, trusted: Sequence[str] = ()) -> "Predictor":
    """Load a trained network: uint8 images [B, 28, 28] in, probabilities [B, C] out.

    `path` is a checkpoint file or a run's folder; only weights and plain data are read from it. `trusted` names
    packages, beside torch.nn and mnist_lit, whose classes the network may be built from. Raises UserError for
    a file that is missing, damaged, or would build anything else.
    """
    from mnist_lit import startup
    from mnist_lit.errors import UserError

    if isinstance(trusted, str):
        raise UserError(f"trusted={trusted!r}: must be a list of packages, [{trusted!r}]")
    with startup.fast_imports(is_program=False):  # what else this process holds is the caller's
        from mnist_lit.checkpoint import read_checkpoint
    return read_checkpoint(path).predictor(trusted=trusted)
