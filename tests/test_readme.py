"""Every command in the README is run here, by sweep/test_tensorboard.py, or by .ci/run (the two that set all up)."""

import re
import shlex
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if ".venv" not in line
]
# The same on fewer digits and epochs; later words win, so a command's own stay unless named here.
QUICK = ["data=sample", "trainer.max_epochs=2", "test=true"]


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


def test_all_commands_are_known() -> None:
    known = [*of("train"), *of("report"), "tensorboard --logdir outputs"]
    assert sorted(COMMANDS) == sorted(known)


@pytest.mark.parametrize("command", of("train"))
def test_train(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[3:]
    quick = [] if "--help" in arguments else [word for word in QUICK if not ("debug=" in command and "data" in word)]
    assert run_main("train", [*arguments, *quick], monkeypatch) == 0
    if "--help" not in arguments:
        assert list(tmp_path.glob("outputs/**/result.json"))


def test_sweep_then_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main("train", ["-m", "optimizer.lr=0.1", "data.batch_size=50", "seed=0,1", *QUICK], monkeypatch) == 0
    Path("outputs/sweeps/seed").rename("outputs/sweeps/lr,batch_size,seed")
    (command,) = of("report")
    assert run_main("report", shlex.split(command)[3:], monkeypatch) == 0
