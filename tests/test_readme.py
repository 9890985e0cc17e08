"""Every command in the README is run here, by sweep/test_tensorboard.py, or by .ci/run (the two that set all up)."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import Trained
from PIL import Image

from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES
from mnist_lit.server import Server

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if ".venv" not in line
]
# The same on fewer digits and epochs; later words win, so a command's own stay unless named here.
QUICK = ["data=sample", "trainer.max_epochs=2", "test=true"]


MODULES = ("train", "report", "evaluate", "predict", "export", "demo")


def of(module: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(f"python -m mnist_lit.{module}")]


def run_main(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    entry = __import__(f"mnist_lit.{module}", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        entry.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def in_a_folder_with_a_run(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder, "outputs/train/DATE/TIME")
    Path("photos").mkdir()
    digits = read_idx(SAMPLE_DIR / f"{TEST_IMAGES}.gz", num_dims=3, md5=None)
    for number, digit in enumerate(digits[:3].numpy()):
        Image.fromarray(digit).save(f"photos/{number}.png")


def test_all_commands_are_known() -> None:
    known = [command for module in MODULES for command in of(module)]
    assert sorted(COMMANDS) == sorted([*known, "tensorboard --logdir outputs"])


@pytest.mark.parametrize("command", [command for command in of("train") if "resume=" not in command])
def test_train(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[3:]
    quick = [] if "--help" in arguments else [word for word in QUICK if not ("debug=" in command and "data" in word)]
    if "-m" in arguments:  # 18 jobs
        quick += ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    assert run_main("train", [*arguments, *quick], monkeypatch) == 0
    if "--help" not in arguments:
        assert list(tmp_path.glob("outputs/**/result.json"))


@pytest.mark.usefixtures("in_a_folder_with_a_run")
@pytest.mark.parametrize(
    ("command", "left"),
    [
        *(
            (command, "outputs/train/DATE/TIME/checkpoints/best.ckpt")
            for command in of("train")
            if "resume=" in command
        ),
        *((command, "outputs/evaluate/*/*/evaluation.json") for command in of("evaluate")),
        *((command, "outputs/predict/*/*/predictions.csv") for command in of("predict")),
        *((command, "outputs/train/DATE/TIME/model.onnx") for command in of("export")),
    ],
)
def test_use_of_a_run(command: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, *arguments = shlex.split(command)[2:]
    if module == "mnist_lit.export":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra `export` has it")
    assert run_main(module.removeprefix("mnist_lit."), arguments, monkeypatch) == 0
    assert list(Path().glob(left))


@pytest.mark.usefixtures("in_a_folder_with_a_run")
@pytest.mark.parametrize("command", of("demo"))
def test_demo(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def at_once_stopped(self: Server, poll_interval: float = 0.5) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", at_once_stopped)
    assert run_main("demo", [*shlex.split(command)[3:], "port=0"], monkeypatch) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out


def test_sweep_then_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main("train", ["-m", "optimizer.lr=0.1", "data.batch_size=50", "seed=0,1", *QUICK], monkeypatch) == 0
    Path("outputs/sweeps/seed").rename("outputs/sweeps/lr,batch_size,seed")
    (command,) = of("report")
    assert run_main("report", shlex.split(command)[3:], monkeypatch) == 0
