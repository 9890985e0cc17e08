"""Which way the arrows point: checked on the source, so that no import has to go wrong first."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from mnist_lit.composition import PACKAGE

# What knows Hydra besides the entry points.
KNOW_HYDRA = {"build", "cli", "composition", "messages", "run_folder", "startup"} | {
    f"sweep.{name}" for name in ("overrides", "preflight", "search")
}
# What builds: for Python's users, for four entry points, from a checkpoint, to see whether a job can work.
BUILD = {"__init__", "cli", "checkpoint", "sweep.preflight", "trust"}
VAGUE = {"util", "utils", "helper", "helpers", "common", "base", "misc", "lib", "tools", "core"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# Started by a person, or named to Hydra or to the process that workers are forked from; nobody imports them.
STARTED = {name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
ENTRY_POINTS = STARTED | {"sweep.callback", "sweep.preloaded"}
PLUGINS = {f"hydra_plugins.{path.stem}": path for path in (PACKAGE.parent / "hydra_plugins").glob("mnist_lit_*.py")}
ALL = MODULES | PLUGINS


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reach(module: str, packages: tuple[str, ...]) -> list[str]:
    return [name for name in imports(ALL[module]) if name.split(".")[0] in packages]


def test_there_is_something_to_check() -> None:
    assert {"train", "build", "cli", "model", "module", "data.sources", "callbacks.progress"} <= MODULES.keys()
    assert "train" in STARTED
    assert "mnist_lit.build" in reached("trust")
    assert "mnist_lit.sweep.ledger" in reached("hydra_plugins.mnist_lit_sweeper")
    assert "hydra.utils.instantiate" in reach("build", ("hydra",))


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ENTRY_POINTS - KNOW_HYDRA))
def test_leaf_knows_nothing_of_the_configuration(module: str) -> None:
    assert reach(module, ("hydra", "omegaconf")) == []


def reached(module: str) -> set[str]:
    """Return what it imports of ours, both as a module and as a name in one."""
    return {part for name in reach(module, ("mnist_lit", "hydra_plugins")) for part in (name, name.rpartition(".")[0])}


@pytest.mark.parametrize("module", sorted(ALL))
def test_nobody_imports_an_entry_point_or_a_plugin(module: str) -> None:
    assert reached(module) & ({f"mnist_lit.{name}" for name in ENTRY_POINTS} | PLUGINS.keys()) == set()


@pytest.mark.parametrize("module", sorted(ALL.keys() - ENTRY_POINTS - BUILD))
def test_leaf_is_built_and_builds_nothing(module: str) -> None:
    assert reached(module) & {"mnist_lit.build", "mnist_lit.trust"} == set()


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("linear", set()),
        ("model", {"mnist_lit.linear"}),
        ("loss", set()),
        ("errors", set()),
        ("pictures", {"mnist_lit.notation"}),
        ("data.idx", {"mnist_lit.errors"}),
        ("data.dataset", set()),
        ("data.augmentation", set()),
        ("photos.ink", {"mnist_lit.errors"}),
        ("photos.sheet", {"mnist_lit.photos.ink", "mnist_lit.errors"}),
        ("photos.photo", {"mnist_lit.errors", "mnist_lit.photos.ink", "mnist_lit.photos.sheet"}),
        ("photos.album", {"mnist_lit.errors", "mnist_lit.photos"}),
        ("data.sources", {"mnist_lit.errors", "mnist_lit.data.idx"}),
        ("module", {"mnist_lit.errors", "mnist_lit.data.dataset"}),
        ("notation", set()),
        ("reports.comparison", set()),
        ("reports.runs", {"mnist_lit.errors", "mnist_lit.result", "mnist_lit.notation"}),
        ("predictor", {"mnist_lit.errors"}),
        ("formats", {"mnist_lit.errors", "mnist_lit.predictor"}),
        ("server", {"mnist_lit.errors", "mnist_lit.predictor", "mnist_lit.photos.photo"}),
    ],
)
def test_what_reads_alone_imports_little_of_ours(module: str, allowed: set[str]) -> None:
    assert {name.rpartition(".")[0] for name in reach(module, ("mnist_lit",))} <= allowed


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {f"mnist_lit.{module}".removesuffix(".__init__"): module for module in MODULES}
    arrows = {
        module: {names.get(name) or names.get(name.rpartition(".")[0], "elsewhere") for name in imports(path)}
        for module, path in MODULES.items()
    }
    assert "reports.ranking" in arrows["reports.report"]
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_network_and_loss_need_torch_only() -> None:
    for module in ("model", "linear", "loss"):
        others = {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names)
        assert others - {"mnist_lit"} == {"torch"}


def test_names_say_what_is_inside() -> None:
    assert {part for module in MODULES for part in module.split(".")} & VAGUE == set()


@pytest.mark.parametrize(
    "module",
    [f"mnist_lit.{name}" for name in ("train", "evaluate", "predict", "export", "demo", "cli", "sweep.callback")],
)
def test_import_waits_with_what_takes_seconds(module: str) -> None:
    slow = ("torch", "lightning", "torchvision", "torchmetrics", "matplotlib", "tensorboard", "numpy", "pandas")
    script = f"import sys, {module}; print(*[name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
