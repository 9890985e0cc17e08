"""What notebooks use: `from mnist_lit import load_model, train`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import read_result
from made_processes import script_in_child

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def python(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_readmes_example_runs(tmp_path: Path) -> None:
    (example,) = (block for block in README.split("```python\n")[1:])
    example = example.split("```")[0]
    done = python(example.replace('train("', 'train("data=sample", "'), tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy, prediction = done.stdout.split()
    assert 0.5 < float(accuracy) < 1
    assert prediction in "0123456789"


def test_python_raises_what_the_command_line_prints(tmp_path: Path) -> None:
    script = """
from mnist_lit import load_model, train
from mnist_lit.errors import UserError
words = ("optimizer.lrr=1", "optimizer.lr=abc", "data.batch_size=0", "optimizer=sdg", "optimizer=null", "resume=a")
words += ("hydra.run.dir=a", ["seed=1"])
import hydra
hydra.initialize_config_dir("/", version_base="1.3")  # the caller's own
for word in words:
    try:
        train("data=sample", word)
    except UserError as error:
        print(error)
assert hydra.core.global_hydra.GlobalHydra.instance().is_initialized()
try:
    train("data=sample", "trainer.accelerator=cpu", "trainer.devices=2")
except UserError as error:
    print(error)
try:
    load_model("nowhere", trusted="mine")
except UserError as error:
    print(error)
run = train("data=sample", "debug=fast", run_dir="a,b=c")
print(run.result.status, run.run_dir.name, run.run_dir.is_absolute())
try:
    train("data=sample", run_dir="a,b=c")
except UserError as error:
    print(error)
"""
    code, printed, errors = script_in_child(script, tmp_path)
    folder = tmp_path / "a,b=c"
    assert code == 0, errors
    assert printed.splitlines() == [
        "optimizer.lrr is not a key: there are lr, momentum, nesterov, weight_decay, fused; did you mean optimizer.lr?",
        "optimizer.lr=abc: must be a number",
        "data.batch_size must be at least 1 and below 2147483648, got 0",
        "optimizer=sdg: no such option, there are adam, adamw, sgd; did you mean optimizer=sgd?",
        "optimizer=null: no such option, there are adam, adamw, sgd; to add one, write DIR/optimizer/NAME.yaml and "
        "pass --config-dir DIR",
        "resume=a: from Python, a run cannot go on; use python -m mnist_lit.train resume=a",
        "hydra.run.dir=a: not from Python, where run_dir= names the folder, config_dir= that of your options, "
        "and a loop makes a sweep",
        "['seed=1']: each override is a text of its own, as in train('data=sample', 'seed=1')",
        "trainer.devices: from Python, set it to 1; the command line can train on several"
        if (os.cpu_count() or 1) > 1
        else "trainer.devices=2: this machine has 1 processors, set it to 1",
        "trusted='mine': must be a list of packages, ['mine']",
        "finished a,b=c True",
        f"{folder} belongs to another run: resume={folder} goes on with it, or name a new folder",
    ]
    assert not list(tmp_path.glob("outputs/train/*/*"))
    assert (tmp_path / "a,b=c" / "config.yaml").exists()


def test_options_of_ones_own_are_found_from_python(tmp_path: Path) -> None:
    folder = tmp_path / "my conf,a=b" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.002\n")
    script = """
from mnist_lit import train
from mnist_lit.errors import UserError
run = train("debug=fast", "optimizer=mine", config_dir="my conf,a=b", run_dir="run")
print(run.config["optimizer"]["lr"], run.overrides)
try:
    train("debug=fast", config_dir="nowhere")
except UserError as error:
    print(error)
"""
    code, printed, errors = script_in_child(script, tmp_path)
    assert code == 0, errors
    assert printed.splitlines() == [
        "0.002 ['--config-dir=my conf,a=b', 'debug=fast', 'optimizer=mine']",
        "config_dir=nowhere: no such folder",
    ]


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt()"), (signal.SIGTERM, "SystemExit(143)")]
)
@pytest.mark.parametrize("step", ["training_step", "test_step"])
def test_a_signal_raises_what_it_does_elsewhere(number: signal.Signals, raised: str, step: str, tmp_path: Path) -> None:
    script = f"""
import os
from mnist_lit import train
from mnist_lit.module import Classifier
step = Classifier.{step}
def patched(*arguments):
    os.kill(os.getpid(), {number.value})
    return step(*arguments)
Classifier.{step} = patched
try:
    train("data=sample", "data.eval_batch_size=100", run_dir="run")
except BaseException as error:
    print(repr(error))
"""
    code, printed, errors = script_in_child(script, tmp_path)
    assert (code, printed.splitlines()[-1]) == (0, raised), errors
    assert read_result(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.parametrize("name", ["train", "load_model"])
def test_import_is_quick_and_offers_both(name: str, tmp_path: Path) -> None:
    done = python(f"import sys; from mnist_lit import {name}; print('torch' in sys.modules)", tmp_path)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("entry_point", ["evaluate", "predict", "export", "demo"])
def test_a_checkpoint_that_is_not_there_is_told_before_torch_is_imported(entry_point: str, tmp_path: Path) -> None:
    script = f"""
import sys
from mnist_lit import {entry_point} as entry_point
sys.argv = ["mnist-lit", "ckpt=nowhere"]
try:
    entry_point.main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = python(script, tmp_path)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: ckpt=nowhere: no such file or folder; name a .ckpt file or a run's folder")
