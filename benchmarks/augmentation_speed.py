"""What distorting the training images costs, against the same training without, measured in the same run.

    python benchmarks/augmentation_speed.py            # real MNIST, a few minutes, one table

Fit seconds are what `result.json` calls so, of one epoch of 60,000 images; runs with and without are interleaved,
and a ratio is the median of the ratios within a round.
"""

import argparse
import statistics

from train_speed import experiment, machine, ours

# The network of Simard et al. 2003 (one hidden layer of 800 units, batches of 128), and ours at the same batch size.
NETWORKS = {"784-800-10": "[800]", "784-256-64-10": "[256,64]"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    same = ["experiment=simard2003_800", "trainer.max_epochs=1"]
    experiment(*same).datamodule.prepare_data()
    ours(*same)  # warm up

    print(machine())
    print(f"{'network':14}  {'augmentation':14}  {'fit s':>6}  fit s with / without (lowest to highest)")
    for network, hidden_sizes in NETWORKS.items():
        sized = [*same, f"model.hidden_sizes={hidden_sizes}"]
        options = ("none", "elastic", "affine_elastic")
        rounds = [{option: ours(*sized, f"augmentation={option}") for option in options} for _ in range(repeats)]
        for option in options:
            seconds = statistics.median(times[option] for times in rounds)
            ratios = [times[option] / times["none"] for times in rounds]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{network:14}  {option:14}  {seconds:6.2f}  {spread}", flush=True)


if __name__ == "__main__":
    main()
