"""How fast training is, against the blog's loop and a bare loop measured in the same run.

    python benchmarks/train_speed.py            # real MNIST, about ten minutes, one table
    python benchmarks/train_speed.py --repeats 1
    python benchmarks/train_speed.py --accelerator gpu    # the loops only: the blog's script has no GPU

Everything is interleaved, and every figure is a median; a ratio is the median of the ratios within a round,
so that a machine whose speed drifts does not spoil it. "Ours" has TensorBoard, checkpoints, validation and
the progress bar on.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot
from torch.utils.data import DataLoader, Subset

from mnist_lit import composition, startup

# As `python -m mnist_lit.train` does, which keeps what imports make out of garbage collection.
with startup.fast_imports():
    import lightning as L

    from mnist_lit.build import build
    from mnist_lit.data import sources
    from mnist_lit.linear import Linear
    from mnist_lit.run import Run, quiet

CPU = torch.device("cpu")
NUM_TRAIN = 55_000  # what 5,000 validation images leave
BATCH_SIZE = 512
NUM_EPOCHS = 3


def experiment(*overrides: str) -> Run:
    composition.register_resolvers()
    with initialize_config_dir(str(composition.CONF_DIR), version_base="1.3"):
        cfg = compose("train", [f"run_dir={tempfile.mkdtemp()}", "callbacks.progress.always=true", *overrides])
    return build(cfg)


def ours(*overrides: str, device: torch.device = CPU) -> float:
    """Seconds from the first batch to the end of the last epoch: what `result.json` calls `fit_seconds`."""
    made = experiment("~callbacks.pictures", accelerator(device), *overrides)
    fit(made)
    return made.timer.time_elapsed("train")


def fit(run: Run) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), quiet():
        run.trainer.fit(run.module, datamodule=run.datamodule)


class BareEpochs(L.Callback):
    """Measures a fit's length in epochs of the bare loop, one of which is run before each of the fit's own."""

    def __init__(self, run: Run, images: Tensor, labels: Tensor) -> None:
        self.timer, self.data = run.timer, (images, labels)
        self.length = 0.0
        self.measured = self.paused = 0.0  # seconds of the fit so far, with the bare epochs and of these alone
        self.bare = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.count()
        started = time.perf_counter()
        self.bare = bare(*self.data, num_epochs=1)
        self.paused += time.perf_counter() - started

    def count(self) -> None:
        if self.data[0].is_cuda:
            torch.cuda.synchronize()  # whose work is only asked for by then
        ours = self.timer.time_elapsed("train") - self.paused
        if self.bare:
            self.length += (ours - self.measured) / self.bare
            self.measured = ours


def length(num_epochs: int, images: Tensor, labels: Tensor) -> float:
    """Length of a fit in epochs of the bare loop, so that the drift of the machine's speed does not count."""
    made = experiment("~callbacks.pictures", accelerator(images.device), f"trainer.max_epochs={num_epochs}")
    epochs = BareEpochs(made, images, labels)
    made.trainer.callbacks.append(epochs)  # type: ignore[attr-defined]  # which Lightning does not declare
    fit(made)
    epochs.count()
    return epochs.length


def accelerator(device: torch.device) -> str:
    return f"trainer.accelerator={device.type}"


def seconds_since(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()  # whose work is only asked for by then
    return time.perf_counter() - started


def network(layer: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), layer(784, 256), nn.ReLU(), layer(256, 64), nn.ReLU(), layer(64, 10))


def bare(images: Tensor, labels: Tensor, layer: type[nn.Linear] = nn.Linear, *, num_epochs: int = NUM_EPOCHS) -> float:
    """Seconds of the least a loop can do with the data in memory: normalised floats, randperm, index, step."""
    device = images.device
    images = (images.float() / 255 - 0.1307) / 0.3081
    targets = one_hot(labels, 10).float()
    net = network(layer).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    started = time.perf_counter()
    for _ in range(num_epochs):
        for batch in torch.randperm(len(images), device=device).split(BATCH_SIZE):
            loss = mse_loss(net(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return seconds_since(started, device)


def blog(root: Path, device: torch.device) -> float:
    """Seconds of the blog's loop: torchvision's data set, transforms per image, DataLoader."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    loader = DataLoader(Subset(datasets.MNIST(root, transform=transform), range(NUM_TRAIN)), BATCH_SIZE, shuffle=True)
    net = network().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    started = time.perf_counter()
    for _ in range(NUM_EPOCHS):
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            loss = mse_loss(net(images), one_hot(labels, 10).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return seconds_since(started, device)


# Started from this process, a child would count this one's memory as its own: Linux carries the peak of the
# forking process through exec. A launcher of a few MB stands between.
LAUNCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def process(*command: str) -> tuple[float, float]:
    """Return wall seconds and peak MB of a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"MNIST_LIT_DATA": str(data_root())}
        launched = [sys.executable, "-S", "-c", LAUNCHER, *command]
        told = subprocess.run(launched, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
    code, seconds, peak = told.split()
    if code != "0":
        raise SystemExit(f"{' '.join(command)} failed")
    return float(seconds), float(peak)


def data_root() -> Path:
    return Path(os.environ.get("MNIST_LIT_DATA", "data")).resolve()


def machine(device: torch.device = CPU) -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), model)
    if device.type == "cuda":
        model = f"{torch.cuda.get_device_name(device)}, {model}"
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}, torch {torch.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    arguments = parser.parse_args()
    repeats, device = arguments.repeats, torch.device("cuda") if arguments.accelerator == "gpu" else CPU

    made = experiment(accelerator(device))
    made.datamodule.prepare_data()
    splits = sources.load(made.datamodule.source)
    images, labels = (t[:NUM_TRAIN].to(device) for t in (splits.train_images, splits.train_labels))
    root = data_root()
    script = str(Path(__file__).with_name("blog_script.py"))

    rounds: dict[str, Callable[[], float | tuple[float, float]]] = {
        "bare": lambda: bare(images, labels),
        "ours": lambda: ours(device=device),
        "bare, ours": lambda: bare(images, labels, Linear),
        "bf16": lambda: ours("trainer.precision=bf16-mixed", device=device),
        "blog": lambda: blog(root, device),
    }
    if device == CPU:
        rounds |= {
            "our process": lambda: process(sys.executable, "-m", "mnist_lit.train", accelerator(CPU)),
            "blog process": lambda: process(sys.executable, script, str(root), "loss.png"),
        }
    ours("trainer.max_epochs=1", device=device)  # warm up
    measured: dict[str, list[float]] = {name: [] for name in rounds}
    memory: dict[str, list[float]] = {name: [] for name in rounds if "process" in name}
    lengths: dict[int, list[float]] = {1: [], 3: [], 10: [], 30: []}  # by epochs
    for _ in range(repeats):
        for name, measure in rounds.items():
            bare(images, labels)  # an idle processor takes a second to come back to its speed
            outcome = measure()
            if isinstance(outcome, tuple):
                outcome, peak = outcome
                memory[name].append(peak)
            measured[name].append(outcome)
        for n, of_fits in lengths.items():
            of_fits.append(length(n, images, labels))

    def ratio(a: list[float], b: list[float]) -> str:
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    # A straight line through the medians at 1 and 30 epochs: how far are 3 and 10 from it?
    middle = {n: statistics.median(of_fits) for n, of_fits in lengths.items()}
    slope = (middle[30] - middle[1]) / 29
    bend = max(abs(middle[n] / (middle[1] + slope * (n - 1)) - 1) for n in (3, 10))
    m = measured
    print(f"{machine(device)}; batch {BATCH_SIZE}, {NUM_EPOCHS} epochs of {NUM_TRAIN:,} images, median of {repeats}\n")
    print("| figure | must reach | measured |\n|---|---|---|")
    print(f"| blog-style loop / ours, fit seconds | >= 11 | {ratio(m['blog'], m['ours'])} |")
    print(f"| ours / bare loop | <= 1.15 | {ratio(m['ours'], m['bare'])} |")
    print(f"| ours / bare loop with our linear layers | - | {ratio(m['ours'], m['bare, ours'])} |")
    print(f"| ours in bf16-mixed / bare fp32 loop | <= 0.90 | {ratio(m['bf16'], m['bare'])} |")
    if memory:
        processes = [(of["our process"], of["blog process"]) for of in (m, memory)]
        print(f"| our whole process / the blog script's | <= 0.30 | {ratio(*processes[0])} |")
        print(f"| peak memory, ours / the blog script's | <= 1.25 | {ratio(*processes[1])} |")
    print(f"| 3 and 10 epochs off the line through 1 and 30 | <= 5 % | {100 * bend:.1f} % |\n")
    for name, values in m.items():
        print(f"{name:13} {statistics.median(values):6.2f} s  ({min(values):.2f} to {max(values):.2f})")
    for n, of_fits in lengths.items():
        print(
            f"{f'{n} epochs':13} {middle[n]:6.2f} epochs of the bare loop  ({min(of_fits):.2f} to {max(of_fits):.2f})"
        )
    for name, values in memory.items():
        print(f"{name:13} {statistics.median(values):6.0f} MB peak")


if __name__ == "__main__":
    main()
