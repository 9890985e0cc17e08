"""Imports, and what they leave."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from lightning_utilities.core import imports

from mnist_lit import startup


def test_fast_imports_collects_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning")  # as in a new process
    with pytest.raises(ImportError), startup.fast_imports(is_program=False):
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_fast_imports_leave_a_caller_its_collector(monkeypatch: pytest.MonkeyPatch, is_enabled: bool) -> None:
    monkeypatch.delitem(sys.modules, "lightning")  # as in a new process
    frozen = gc.get_freeze_count()
    (gc.enable if is_enabled else gc.disable)()
    try:
        with startup.fast_imports(is_program=False):
            assert not gc.isenabled()
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()
    assert gc.get_freeze_count() <= frozen  # what earlier tests froze may be freed meanwhile


def test_fast_imports_hide_what_torchmetrics_would_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> list[bool]:
        caches = [imports.RequirementCache(name) for name in ("torchvision", "scipy>=1", "matplotlib", "torch")]
        return [*map(bool, caches), imports.package_available("scipy"), imports.package_available("torch")]

    monkeypatch.delitem(sys.modules, "lightning")  # as in a new process
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with startup.fast_imports():
        assert seen() == [False, False, False, True, False, True]
    assert seen() == [True] * 6
    monkeypatch.delitem(sys.modules, "lightning", raising=False)
    with startup.fast_imports(is_program=False):
        assert seen() == [False, False, True, True, False, True]


@pytest.mark.parametrize("has_triton", [True, False])
def test_triton_does_not_report_as_leaks_what_is_not_collected(has_triton: bool) -> None:
    script = """
import atexit, os, sys, types
from mnist_lit import startup

with startup.fast_imports():
    atexit.register(print, "a library's handler", file=sys.stderr, flush=True)

class Module(types.ModuleType):
    def __del__(self, write=os.write):
        write(2, b"leaked")

sys.modules[sys.argv[1]] = Module(sys.argv[1])
print("an error", file=sys.stderr)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, "triton" if has_triton else "other"], capture_output=True, text=True, timeout=60
    )
    expected = "an error\na library's handler\n"
    assert (told.returncode, told.stderr) == (0, expected if has_triton else f"{expected}leaked")


def test_what_happens_to_be_installed_is_not_imported(tmp_path: Path) -> None:
    for name in ("librosa", "torch_fidelity", "transformers", "vmaf_torch"):
        (tmp_path / f"{name}-99.dist-info").mkdir()
        (tmp_path / f"{name}-99.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 99\n")
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} is imported')")
    script = "from mnist_lit import startup\nwith startup.fast_imports(): import mnist_lit.build"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("files", "chosen", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, {}, 2),
        ({"cpu.max": "50000 100000\n"}, {}, 1),
        ({"cpu.max": "max 100000\n"}, {}, 8),
        ({"cpu.max": "1600000 100000\n"}, {}, 8),
        ({"cpu.max": "100000 100000\n"}, {"OMP_NUM_THREADS": "8"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, {}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, {}, 8),
        ({}, {}, 8),
    ],
)
def test_torch_has_no_more_threads_than_a_container_may_use(
    files: dict[str, str], chosen: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(startup, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "environ", chosen)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        for is_program in (False, True):
            monkeypatch.delitem(sys.modules, "lightning", raising=False)  # as in a new process
            with startup.fast_imports(is_program=is_program):
                pass
            assert torch.get_num_threads() == (expected if is_program else 8)
    finally:
        torch.set_num_threads(before)


def test_runs_after_the_first_keep_no_garbage_for_good() -> None:
    class Node:
        itself: "Node"

    node = Node()
    node.itself = node
    reference = weakref.ref(node)
    gc.disable()  # a collection in between would hide what is tested
    try:
        del node
        with startup.fast_imports():
            pass
    finally:
        gc.enable()
    gc.collect()
    assert reference() is None
