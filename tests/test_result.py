import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mnist_lit import result
from mnist_lit.result import Result, config_hash, git_commit, write_atomically


def make(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "status": "finished",
        "config_hash": "0123456789abcdef",
        "overrides": ["seed=3"],
        "seed": 3,
        "device": "1 x cpu (2 threads)",
        "num_parameters": 7,
    }
    return Result(**(fields | changes))


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_written_result_reads_back(tmp_path: Path) -> None:
    make(metrics={"val/acc": 0.5}, best_epoch=1, history={"val/acc": [(16, 0.5)]}).write(tmp_path)
    record = strictly((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (
        record
        | {
            "schema_version": 2,
            "status": "finished",
            "overrides": ["seed=3"],
            "seed": 3,
            "metrics": {"val/acc": 0.5},
            "best_epoch": 1,
            "fit_seconds": None,
            "error": None,
            "history": {"val/acc": [[16, 0.5]]},
        }
        == record
    )
    assert record["versions"].keys() == {"python", "mnist-lit", "torch", "lightning", "hydra-core"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    make(
        metrics={"val/loss": nan, "val/acc": 0.1}, fit_seconds=-infinity, history={"train/loss": [(10, infinity)]}
    ).write(tmp_path)
    record = strictly((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["metrics"] == {"val/loss": None, "val/acc": 0.1}
    assert record["fit_seconds"] is None
    assert record["history"] == {"train/loss": [[10, None]]}


def test_text_in_any_language_is_kept(tmp_path: Path) -> None:
    make(error='Größe 数字 "quoted"').write(tmp_path)
    assert strictly((tmp_path / "result.json").read_text(encoding="utf-8"))["error"] == 'Größe 数字 "quoted"'


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_result_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    assert result.read_result(tmp_path) is None


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"^no space$"):
        make().write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(self: Path, data: bytes) -> int:
        self.write_text(data.decode()[:1], encoding="utf-8")
        raise OSError("no space")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"^no space$"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    seen = []
    names = []
    replace = Path.replace

    def looking(self: Path, target: Path) -> Path:
        seen.append((path.read_text(encoding="utf-8"), self.read_text(encoding="utf-8"), self.parent))
        names.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", looking)
    write_atomically(path, "new")
    assert seen == [("old", "new", tmp_path)]
    assert str(os.getpid()) in names[0]  # another process's would be another file
    assert path.read_text(encoding="utf-8") == "new"


CONFIG = {
    "data": {"root": "data", "batch_size": 64},
    "optimizer": {"lr": 0.1, "momentum": 0.9},
    "model": {"hidden_sizes": [8, 4]},
    "callbacks": {"checkpoint": {"dirpath": "/runs/first/checkpoints"}},
    "seed": 0,
    "run_dir": "/runs/first",
}


def test_hash_is_sixteen_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{16}", config_hash(CONFIG))


def test_hash_does_not_depend_on_folders_pictures_or_the_order_of_keys() -> None:
    same = {
        "run_dir": "/runs/second",
        "callbacks": {"checkpoint": {"dirpath": "/runs/second/checkpoints"}, "pictures": {"draw": ["loss_curve"]}},
        "seed": 0,
        "model": {"hidden_sizes": [8, 4]},
        "optimizer": {"momentum": 0.9, "lr": 0.1},
        "data": {"batch_size": 64, "root": "elsewhere"},
    }
    assert config_hash(same) == config_hash(CONFIG)


def test_hash_takes_no_neighbour_of_the_runs_folder_for_it() -> None:
    folders = ("/runs/first", "/runs/second")
    changes = [{"run_dir": folder, "callbacks": {"x": {"dirpath": f"{folder}-2"}}} for folder in folders]
    assert len({config_hash(CONFIG | change) for change in changes}) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {"lr": 0.2, "momentum": 0.9}},
        {"model": {"hidden_sizes": [4, 8]}},
        {"data": {"root": "data", "batch_size": 65}},
        {"seed": 1},
        {"callbacks": {"checkpoint": {"dirpath": "/runs/third/checkpoints"}}},
        {"new": None},
    ],
)
def test_hash_changes_with_what_matters(change: dict[str, Any]) -> None:
    assert config_hash(CONFIG | change) != config_hash(CONFIG)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the package lie in a repository of its own, with one commit."""
    (tmp_path / "mnist_lit").mkdir()
    (tmp_path / "mnist_lit" / "result.py").write_text("", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "-am", "a tag must not take the commit's place", "v1")
    monkeypatch.setattr(result, "__file__", str(tmp_path / "mnist_lit" / "result.py"))
    return tmp_path


as_it_is = git_commit.__wrapped__  # without the memory of a process


def test_commit_of_a_checkout_and_whether_it_was_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert as_it_is() == commit
    (checkout / "pyproject.toml").write_text("changed", encoding="utf-8")
    assert as_it_is() == f"{commit}-dirty"


def test_no_commit_for_an_installed_package_in_someone_elses_repository(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    assert as_it_is() is None


def test_no_commit_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    monkeypatch.setattr(result, "__file__", str(tmp_path / "mnist_lit" / "result.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert as_it_is() is None


def test_no_commit_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / "nothing"))
    assert as_it_is() is None


def test_commit_is_that_of_the_code_that_runs(checkout: Path) -> None:
    git_commit.cache_clear()
    try:
        commit = git_commit()
        (checkout / "pyproject.toml").write_text("changed", encoding="utf-8")
        assert git_commit() == commit == git(checkout, "rev-parse", "HEAD")
    finally:
        git_commit.cache_clear()
