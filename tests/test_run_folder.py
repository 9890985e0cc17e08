"""The folders that runs get."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from mnist_lit import run_folder
from mnist_lit.errors import UserError


class Stopped(datetime):
    @classmethod
    def now(cls, tz: object = None) -> "Stopped":
        return cls(2026, 11, 24, 10, 15, 30)


def test_new_folder_is_named_by_date_and_time(tmp_path: Path) -> None:
    folder = Path(run_folder.new_folder(str(tmp_path / "outputs" / "train")))
    assert folder.is_dir()
    assert re.fullmatch(r"outputs/train/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", str(folder.relative_to(tmp_path)))


def test_new_folder_goes_to_one_thread_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "datetime", Stopped)
    with ThreadPoolExecutor(10) as pool:
        folders = list(pool.map(run_folder.new_folder, [str(tmp_path)] * 10))
    names = {"10-15-30", *(f"10-15-30-{n}" for n in range(2, 11))}
    assert set(folders) == {str(tmp_path / "2026-11-24" / name) for name in names}
    assert {path.name for path in (tmp_path / "2026-11-24").iterdir()} == names


def test_new_folders_of_one_second_are_counted_from_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "datetime", Stopped)
    names = [Path(run_folder.new_folder(str(tmp_path))).name for _ in range(3)]
    assert names == ["10-15-30", "10-15-30-2", "10-15-30-3"]


def test_new_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"file/.*: Not a directory; cd to another folder, or name one, "):
        run_folder.new_folder(str(tmp_path / "file"))
