import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Train
from matplotlib.image import imread
from torch import Tensor

from mnist_lit.build import build
from mnist_lit.data.augmentation import AffineElastic
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR
from mnist_lit.module import Classifier

NOTHING = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "translate": 0.0, "alpha": 0.0, "sigma": 4.0}
CPU = torch.device("cpu")


def make(**strengths: float) -> AffineElastic:
    return AffineElastic(**(NOTHING | strengths))


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return read_idx(SAMPLE_DIR / "train-images-idx3-ubyte.gz", num_dims=3, md5=None)[:200]


def pixels() -> Tensor:
    """Positions [2, 28, 28] of the pixels, across and down from the centre."""
    centres = torch.arange(28) - 13.5
    return torch.stack([centres.expand(28, 28), centres.unsqueeze(1).expand(28, 28)])


def displacements(num_images: int, **strengths: float) -> Tensor:
    torch.manual_seed(0)
    return make(**strengths).draw_positions(num_images, CPU) - pixels()


def forward_maps(num_images: int, **strengths: float) -> tuple[Tensor, Tensor]:
    """Return what the affine part does to the digits: matrices [B, 2, 2], and shifts [B, 2] before them."""
    torch.manual_seed(0)
    positions = make(**strengths).draw_positions(num_images, CPU)
    across = positions[:, :, 0, 1] - positions[:, :, 0, 0]
    down = positions[:, :, 1, 0] - positions[:, :, 0, 0]
    return torch.stack([across, down], dim=2).inverse(), -positions.mean(dim=(2, 3))


def assert_uniform(drawn: Tensor, low: float, high: float) -> None:
    assert low <= drawn.min() < low + 0.02 * (high - low)
    assert high >= drawn.max() > high - 0.02 * (high - low)
    assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert drawn.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)


# --- Affine


def test_all_strengths_0_return_the_image(digits: Tensor) -> None:
    torch.testing.assert_close(make()(digits), digits.float(), rtol=0, atol=1e-5 * 255)


def test_digits_turn_by_up_to_degrees_either_way() -> None:
    matrices, shifts = forward_maps(2000, degrees=30)
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(2).expand(2000, 2, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(matrices.det(), torch.ones(2000), rtol=0, atol=1e-4)
    assert_uniform(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg(), -30, 30)
    assert shifts.abs().max() < 1e-5


def test_width_and_height_scale_by_factors_of_their_own() -> None:
    matrices, _ = forward_maps(2000, scale=0.2)
    assert matrices[:, 0, 1].abs().max() == matrices[:, 1, 0].abs().max() == 0
    width, height = matrices[:, 0, 0], matrices[:, 1, 1]
    assert_uniform(width, 0.8, 1.2)
    assert_uniform(height, 0.8, 1.2)
    assert abs(torch.corrcoef(torch.stack([width, height]))[0, 1]) < 0.1


def test_digits_slant_by_up_to_shear_degrees() -> None:
    matrices, _ = forward_maps(2000, shear=20)
    torch.testing.assert_close(matrices[:, 0, 0], torch.ones(2000), rtol=0, atol=1e-4)
    torch.testing.assert_close(matrices[:, 1], torch.tensor([0.0, 1.0]).expand(2000, 2), rtol=0, atol=1e-4)
    assert_uniform(matrices[:, 0, 1].atan().rad2deg(), -20, 20)


def test_digits_shift_by_up_to_translate_pixels() -> None:
    matrices, shifts = forward_maps(2000, translate=3)
    torch.testing.assert_close(matrices, torch.eye(2).expand(2000, 2, 2), rtol=0, atol=1e-4)
    for direction in shifts.unbind(dim=1):
        assert_uniform(direction, -3, 3)


def test_affine_maps_are_scale_then_shear_then_rotation() -> None:
    matrices, _ = forward_maps(50, degrees=30, shear=20, scale=0.2)
    drawn = torch.rand(6, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for matrix, (angle, slant, wider, taller) in zip(matrices, drawn[:4].T, strict=True):
        turn, slope = torch.deg2rad(angle * 30), torch.deg2rad(slant * 20).tan()
        rotation = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
        shear = torch.tensor([[1, slope], [0, 1]])
        torch.testing.assert_close(
            matrix, rotation @ shear @ torch.diag(1 + 0.2 * torch.stack([wider, taller])), rtol=0, atol=1e-4
        )


def test_picture_moves_with_the_map_and_black_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white picture, shifted three pixels to the right and two down, read at whole pixels."""
    augmentation = make()
    monkeypatch.setattr(augmentation, "_affine", lambda num_images: torch.tensor([[1.0, 0, -3], [0, 1, -2]]))
    moved = augmentation(torch.full((1, 28, 28), 255, dtype=torch.uint8))[0]
    expected = torch.zeros(28, 28)
    expected[2:, 3:] = 255
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-2)


# --- Elastic


@pytest.mark.parametrize(("alpha", "sigma"), [(34.0, 4.0), (8.0, 1.0), (38.0, 5.5), (80.0, 10.0)])
def test_displacements_have_the_standard_deviation_of_simards(alpha: float, sigma: float) -> None:
    moved = displacements(2000, alpha=alpha, sigma=sigma)
    expected = alpha / (2 * sigma * math.sqrt(3 * math.pi))
    assert moved.mean(dim=(0, 2, 3)).abs().max() < 0.05 * expected
    assert moved.std(dim=(0, 2, 3)).numpy() == pytest.approx(expected, rel=0.03)
    # Everywhere the same, edges and corners included.
    assert moved.std(dim=0).numpy() == pytest.approx(expected, rel=0.1)
    assert moved.mean(dim=0).abs().max() < 0.12 * expected


def test_displacements_are_those_of_smoothed_noise_at_every_pixel() -> None:
    """Simard's recipe, word for word: noise at each pixel of a large picture, smoothed, cut out of the middle."""
    alpha, sigma, margin = 34.0, 4.0, 16
    offsets = torch.arange(-margin, margin + 1)
    gaussian = torch.exp(-(offsets**2) / (2 * sigma**2))
    gaussian /= gaussian.sum()
    noise = torch.rand(1000, 1, 28 + 2 * margin, 28 + 2 * margin, generator=torch.Generator().manual_seed(1)) * 2 - 1
    smooth = torch.nn.functional.conv2d(noise, gaussian.view(1, 1, -1, 1))
    theirs = alpha * torch.nn.functional.conv2d(smooth, gaussian.view(1, 1, 1, -1)).squeeze(1)
    ours = displacements(1000, alpha=alpha, sigma=sigma)[:, 0]
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.03)
    for lag in (1, 4, 8):
        expected = math.exp(-(lag**2) / (4 * sigma**2))
        for field in (ours, theirs):
            across = (field[:, :, lag:] * field[:, :, :-lag]).mean(dim=(0, 1)) / field.var()
            assert across.mean().item() == pytest.approx(expected, abs=0.03)
            assert across[0].item() == pytest.approx(expected, abs=0.05)  # at the edge, too


def test_across_down_and_images_are_independent() -> None:
    across, down = displacements(2000, alpha=34)[:, :, 14, 14].T
    assert abs(torch.corrcoef(torch.stack([across, down]))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([across[1:], across[:-1]]))[0, 1]) < 0.1


# --- Batches


def test_each_image_of_a_batch_is_distorted_its_own_way(digits: Tensor) -> None:
    torch.manual_seed(0)
    augmented = make(degrees=10, alpha=34)(digits[:1].expand(20, 28, 28))
    assert augmented.dtype == torch.float32
    assert augmented.shape == (20, 28, 28)
    assert len(augmented.flatten(1).unique(dim=0)) == 20
    assert augmented.min() >= 0
    assert augmented.max() <= 255.01


def test_uint8_and_float_give_the_same_and_stay_untouched(digits: Tensor) -> None:
    images, before = digits.float(), digits.clone()
    augmented = []
    for batch in (digits, images):
        torch.manual_seed(0)
        augmented.append(make(degrees=10, translate=1, alpha=34)(batch))
    assert torch.equal(*augmented)
    assert torch.equal(digits, before)
    assert torch.equal(images, before.float())


def test_same_seed_same_bits_and_every_call_its_own(digits: Tensor) -> None:
    augmentation = make(degrees=10, alpha=34)
    torch.manual_seed(3)
    first, second = augmentation(digits), augmentation(digits)
    torch.manual_seed(3)
    again = make(degrees=10, alpha=34)(digits)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_gpu_draws_on_the_gpu(digits: Tensor) -> None:
    augmentation = make(degrees=10, alpha=34)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    first = augmentation(digits.cuda())
    torch.manual_seed(0)
    assert torch.equal(first, augmentation(digits.cuda()))
    assert first.device.type == "cuda"
    torch.testing.assert_close(make()(digits.cuda()).cpu(), digits.float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({"degrees": -1}, "degrees must be from 0 to 180, got -1"),
        ({"degrees": 181}, "degrees must be from 0 to 180, got 181"),
        ({"scale": -0.1}, "scale must be at least 0 and below 1, got -0.1"),
        ({"scale": 1}, "scale must be at least 0 and below 1, got 1"),
        ({"shear": -5}, "shear must be at least 0 and below 90 degrees, got -5"),
        ({"shear": 90}, "shear must be at least 0 and below 90 degrees, got 90"),
        ({"translate": -1}, "translate must be from 0 to 28 pixels, got -1"),
        ({"translate": 29}, "translate must be from 0 to 28 pixels, got 29"),
        ({"alpha": -1}, "alpha must be at least 0, got -1"),
        ({"alpha": math.inf}, "alpha must be at least 0, got inf"),
        ({"sigma": 0.5}, "sigma must be from 1 to 28 pixels, got 0.5"),
        ({"sigma": math.nan}, "sigma must be from 1 to 28 pixels, got nan"),
    ],
)
def test_value_out_of_range_is_refused(strengths: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**strengths)


# --- Runs

ON = "augmentation=affine_elastic"


def same_weights(first: dict[str, Any], second: dict[str, Any]) -> bool:
    weights, others = first["state_dict"], second["state_dict"]
    return all(torch.equal(weights[key].view(torch.int32), others[key].view(torch.int32)) for key in weights)


def test_off_unless_asked_for(make_config: Compose) -> None:
    assert build(make_config()).datamodule.augmentation is None
    assert isinstance(build(make_config(ON)).datamodule.augmentation, AffineElastic)
    # None of what an experiment says of distortions and schedule is left.
    run = build(make_config("experiment=ciresan2010", "augmentation=none", "scheduler=none", "model.hidden_sizes=[8]"))
    assert run.datamodule.augmentation is None
    assert run.module.scheduler is None


def test_only_training_batches_are_distorted(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}

    def noting(split: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Classifier, batch: Any, batch_idx: int) -> Any:
            seen[split].append(batch[0].clone())
            return step(self, batch, batch_idx)

        return wrapped

    for split, hook in (("train", "training_step"), ("val", "validation_step"), ("test", "test_step")):
        monkeypatch.setattr(Classifier, hook, noting(split, getattr(Classifier, hook)))
    run = train_run(ON, "trainer.max_epochs=1", "trainer.accelerator=cpu")
    data = build(run.config).datamodule
    data.setup()
    for split, dataset in (("train", data.train), ("val", data.val), ("test", data.test)):
        originals = {image.numpy().tobytes() for image in data.normalise(dataset.images[dataset.indices])}
        shown = [image for batch in seen[split] for image in batch]
        assert len(shown) == len(dataset)
        untouched = sum(image.numpy().tobytes() in originals for image in shown)
        assert untouched == (0 if split == "train" else len(dataset))
    # Around the digits is what black became by the normalisation.
    background = float(data.normalise(torch.zeros(1, dtype=torch.uint8)))
    assert torch.cat(seen["train"])[:, 0, 0].median().item() == pytest.approx(background, abs=1e-5)


def test_run_repeats_to_the_bit_and_differs_from_the_plain_one(train_run: Train) -> None:
    first, again, plain = (
        train_run(*overrides, "test=false", run=name)
        for name, overrides in (("first", [ON]), ("again", [ON]), ("plain", []))
    )
    assert same_weights(first.last, again.last)
    assert first.history == again.history
    assert not same_weights(first.last, plain.last)
    assert len({run.result["config_hash"] for run in (first, plain)}) == 2
    assert first.last["hyper_parameters"]["augmentation"]["alpha"] == 24.0


def test_pictures_show_distorted_samples_and_change_no_bit(train_run: Train) -> None:
    bare = train_run(ON, "trainer.max_epochs=1", "test=false", run="bare")
    drawn = train_run(ON, "trainer.max_epochs=1", "test=false", run="drawn", full=True)
    assert same_weights(bare.last, drawn.last)
    samples, augmented = (imread(drawn.folder / "figures" / f"{name}.png") for name in ("samples", "augmented"))
    assert samples.shape == augmented.shape
    darkness = [1 - picture[..., :3].mean() for picture in (samples, augmented)]
    assert darkness[0] == pytest.approx(darkness[1], rel=0.1)
    assert 0.01 < np.abs(samples - augmented).mean() < 0.3


def test_pictures_leave_every_librarys_random_numbers_as_they_were(
    train_run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(self: AffineElastic, images: Tensor) -> Tensor:
        return images.roll(int(np.random.randint(5)) + random.randrange(5), dims=2)

    monkeypatch.setattr(AffineElastic, "__call__", shifted)
    bare = train_run(ON, "trainer.max_epochs=1", "test=false", run="bare")
    drawn = train_run(ON, "trainer.max_epochs=1", "test=false", run="drawn", full=True)
    assert same_weights(bare.last, drawn.last)


def test_plain_run_draws_no_distorted_samples(train_run: Train) -> None:
    run = train_run("debug=fast", "test=false", full=True)
    assert not (run.folder / "figures" / "augmented.png").exists()
