import os
import re
import subprocess
import sys
from argparse import Action, ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Main, Outcome
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from mnist_lit import __version__, cli, evaluate, messages, run_folder, train
from mnist_lit.callbacks.pictures import NAMES
from mnist_lit.errors import DivergedError, UserError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("seed=-1: must be from 0"), "seed=-1: must be from 0"),
        (DivergedError("train/loss became nan"), "train/loss became nan"),
        (PermissionError(13, "Permission denied", "outputs"), "Permission denied: outputs"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("two\n  lines"), "RuntimeError: two lines"),
        (HydraException("two\n  lines"), "two lines"),
        (
            MissingConfigException("", missing_cfg_file="hydra/launcher/ray", options=[]),
            "hydra/launcher=ray: not installed; pip install 'mnist-lit[ray]'",
        ),
    ],
)
def test_error_is_described_in_one_line(error: Exception, line: str) -> None:
    assert messages.describe(error) == line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_adds_nothing_to_the_line(main: Main, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").symlink_to("/dev/full")
    outcome = main("hydra.run.dir=run", "optimizer.lr=abc")
    assert outcome == Outcome(2, "", "error: optimizer.lr=abc: must be a number\n")


@pytest.mark.parametrize("file", [None, "a"])
def test_where_the_log_is_is_told_for_errors_that_name_no_file(
    file: str | None, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", file)

    monkeypatch.setattr(run_folder, "write_config", full)
    where = ": a" if file else " (traceback: run/train.log)"
    outcome = main("data=sample", "hydra.run.dir=run")
    assert outcome == Outcome(2, "", f"error: No space left on device{where}\n")


def test_unknown_key_is_described_with_the_known_ones() -> None:
    config = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}})
    OmegaConf.set_struct(config, True)
    with pytest.raises(ConfigAttributeError) as unknown:
        config.optimizer.lrr = 1
    error = HydraException("Could not override")
    error.__cause__ = unknown.value
    assert messages.describe(error) == "optimizer.lrr is not a key: there are lr, momentum; did you mean optimizer.lr?"


def test_help_names_examples_and_options(command: Command) -> None:
    done = command("train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "python -m mnist_lit.train optimizer.lr=0.1 data.batch_size=128 trainer.max_epochs=10",
        "python -m mnist_lit.train experiment=blog",
        "tensorboard --logdir outputs",
        "data: fashion_mnist, kmnist, mnist, sample",
        "optimizer: adam, adamw, sgd",
        "scheduler: cosine, none, one_cycle, plateau",
        "logger: both, csv, none, tensorboard",
    ):
        assert line in done.stdout
    assert "Powered by Hydra" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 132  # the list of experiments


@pytest.mark.parametrize(
    ("module", "option"),
    [("evaluate", "split=test"), ("predict", "images=PATH"), ("export", "format=onnx"), ("demo", "port=8000")],
)
def test_help_is_a_page(main: Main, tmp_path: Path, module: str, option: str) -> None:
    outcome = main("--help", module=module)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"python -m mnist_lit.{module} ckpt=outputs/train/" in outcome.out
    assert option in outcome.out
    assert "Powered by Hydra" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 110
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["evaluate", "predict", "export", "demo"])
def test_help_tells_the_defaults(main: Main, module: str) -> None:
    told = dict(re.findall(r"^ +([a-z_]+)=([a-z0-9]\S*)  ", main("--help", module=module).out, re.MULTILINE))
    config = OmegaConf.create(main("--cfg", "job", module=module).out)
    assert told
    assert told == {key: str(config[key]) for key in told}


def test_help_makes_no_folder(main: Main, tmp_path: Path) -> None:
    assert main("--help").code == 0
    assert main("--cfg", "job").code == 0
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_shown_with_all_values_resolved(main: Main) -> None:
    shown = main("--cfg", "job", "--resolve", "optimizer.lr=0.1", "scheduler=one_cycle")
    assert (shown.code, shown.err) == (0, "")
    config = OmegaConf.create(shown.out)
    assert config.scheduler.scheduler.max_lr == 0.1
    assert config.callbacks.pictures.draw == list(NAMES)


def test_parser_of_python_3_14_accepts_hydras_help_texts(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(parser: ArgumentParser, *names: str, **options: Any) -> Action:
        action = add_argument(parser, *names, **options)
        parser._check_help(action)  # type: ignore[attr-defined]
        return action

    def check(parser: ArgumentParser, action: Action) -> None:
        if action.help and not isinstance(action.help, str):
            raise ValueError("badly formed help string")

    add_argument = ArgumentParser.add_argument
    monkeypatch.setattr(ArgumentParser, "add_argument", checked)
    monkeypatch.setattr(ArgumentParser, "_check_help", check, raising=False)
    outcome = main("--cfg", "job")
    assert (outcome.code, outcome.err) == (0, "")
    assert ArgumentParser._check_help is check  # type: ignore[attr-defined]


def test_version_is_ours(main: Main) -> None:
    assert main("--version").out == f"mnist-lit {__version__}\n"


CLOSED_PIPE = """
import importlib, sys
import mnist_lit.reports.report

def write_report(*args, **kwargs):
    print("a report")
    raise BrokenPipeError

mnist_lit.reports.report.write_report = write_report
importlib.import_module("mnist_lit." + sys.argv[0]).main()
"""


@pytest.mark.parametrize("arguments", [["train", "--help"], ["report", "."]], ids=["train", "report"])
def test_closed_pipe_is_nothing_to_tell(arguments: list[str]) -> None:
    program = f"import sys; sys.argv = {arguments}\n{CLOSED_PIPE}"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_pipe_that_is_not_stdout_breaks_loudly(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: object, cfg: object, resume: bool) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(train, "_execute", broken)
    monkeypatch.setattr(messages, "drop_closed_stdout", lambda: False)
    outcome = main("data=sample", "hydra.run.dir=run")
    assert (outcome.code, outcome.err) == (2, "error: Broken pipe (traceback: run/train.log)\n")


def test_what_a_user_can_mend_exits_with_2_and_one_line(command: Command, tmp_path: Path) -> None:
    done = command("train", "data=sample", "optimizer.lr=abc")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: optimizer.lr=abc: must be a number\n"
    assert list(tmp_path.glob("outputs/train/*/*")) == []


def test_whole_run_in_a_process_of_its_own(command: Command, tmp_path: Path) -> None:
    (tmp_path / "fonts").mkdir()
    done = command("train", "debug=fast", MPLCONFIGDIR=str(tmp_path / "fonts"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "curves      tensorboard --logdir outputs")
    # Nothing else is printed, though matplotlib has looked for fonts for the first time.
    (line,) = done.stderr.splitlines()
    assert line.startswith("epoch 1/1  train/loss 0.")
    assert list((tmp_path / "fonts").iterdir())


def test_full_error_is_raised_as_it_is(main: Main) -> None:
    with pytest.raises(UserError) as error:
        main("data=sample", "optimizer.lr=abc", full_error=True)
    assert str(error.value) == "optimizer.lr=abc: must be a number"
    # Python prints the whole way down to where it was found.
    assert {"main", "train", "check"} <= {entry.name for entry in error.traceback}


def test_full_error_is_raised_before_there_is_a_configuration(main: Main) -> None:
    with pytest.raises(MissingConfigException):
        main("optimizer=sdg", full_error=True)


def test_bug_exits_with_1_and_leaves_its_traceback_in_the_log(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: object, cfg: object, resume: bool) -> None:
        raise ZeroDivisionError("by\nzero") from FileNotFoundError("of no interest to the user")

    monkeypatch.setattr(train, "_execute", broken)
    outcome = main("data=sample", "hydra.run.dir=run")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: ZeroDivisionError: by zero (traceback: run/train.log)\n"
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "ERROR mnist_lit.file_only: error: ZeroDivisionError: by zero" in log
    assert "Traceback (most recent call last):" in log


@pytest.mark.parametrize(
    "path", ["a,b=1/c d", "[1]{2}(3):4", 'say "no"', "back\\slash\\", 'back\\"', "C:\\runs\\new", "Größe 数字", "null"]
)
def test_path_is_taken_as_it_stands(main: Main, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    seen = []
    monkeypatch.setattr(evaluate, "main", lambda: cli.run(lambda cfg: seen.append(cfg.ckpt), "evaluate"))
    assert main(f"ckpt={path}", module="evaluate").code == 0
    # One's own quotes are Hydra's.
    assert main("ckpt='x,y'", module="evaluate").code == 0
    assert seen == [path, "x,y"]


@pytest.mark.parametrize("end", [UserError("no"), KeyboardInterrupt("no"), SystemExit(143)])
def test_run_that_never_starts_takes_its_own_folder_away(tmp_path: Path, end: BaseException) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train.log").write_text("", encoding="utf-8")
    with pytest.raises(type(end), match=f"^{end}$"), run_folder.no_folder_left(folder):
        raise end
    assert not folder.exists()


def test_run_that_has_told_where_its_log_is_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "train.log").touch()
    with pytest.raises(SystemExit), run_folder.no_folder_left(tmp_path):
        raise SystemExit(1)
    assert (tmp_path / "train.log").exists()


def test_folder_that_the_user_is_in_is_never_taken_away(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main("data=sample", "optimizer.lr=abc", "hydra.run.dir=.").code == 2
    assert (tmp_path / "empty" / "train.log").exists()


def test_a_log_that_cannot_be_written_is_named(main: Main, tmp_path: Path) -> None:
    (tmp_path / "run" / "train.log").mkdir(parents=True)
    outcome = main("data=sample", "hydra.run.dir=run")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: Is a directory: {tmp_path / 'run' / 'train.log'}\n"


def test_the_users_folder_is_found_where_the_shell_does_not_write_it_out(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main("ckpt=~/nowhere", module="evaluate").err.startswith(f"error: ckpt={tmp_path}/home/nowhere: no such")
    job = "lr,seed/lr=0.1,seed=0"
    assert main(f"ckpt=~/{job}", module="evaluate").err.startswith(f"error: ckpt={tmp_path}/home/{job}: no such file")
    assert f"'{tmp_path}/home/conf' not found" in main("--config-dir=~/conf", "data=sample").err
    outcome = main("data=sample", "data.source_dir=~/digits")
    assert outcome.err.startswith(f"error: {tmp_path}/home/digits/train-images-idx3-ubyte is missing")
    monkeypatch.setenv("MNIST_LIT_DATA", "~/data")
    assert main("data.fetch_from=[]").err.startswith(f"error: MNIST is not in {tmp_path}/home/data/MNIST/raw")
    monkeypatch.setenv("MNIST_LIT_DATA", "")
    assert main("data.fetch_from=[]").err.startswith("error: data.root must name a folder, got an empty text")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["notes.txt", "server.log", "old/train.log"])
def test_refused_run_removes_nothing_of_the_users(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("precious", encoding="utf-8")
    with pytest.raises(UserError), run_folder.no_folder_left(folder):
        raise UserError("no")
    assert (folder / name).read_text(encoding="utf-8") == "precious"


def test_run_from_the_command_line_leaves_its_log(main: Main, tmp_path: Path) -> None:
    outcome = main("debug=fast", "callbacks.pictures=null", "logger=none")
    assert outcome.code == 0
    (log,) = tmp_path.glob("outputs/train/*/*/train.log")
    line, end = log.read_text(encoding="utf-8").splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d [\d:,]+ INFO mnist_lit.callbacks.progress: epoch 1/1  train/loss 0\.", line)
    assert re.search(r"INFO mnist_lit.file_only: finished: val/loss 0\.\d{4}, val/acc .*, test/acc 0\.\d{4}$", end)
    assert outcome.err.splitlines() == [line.split(": ", 1)[1]]
