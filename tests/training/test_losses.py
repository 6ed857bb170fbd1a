"""Losses against a transcription of their equations in NumPy, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.training.losses import adversarial_loss, discriminator_loss, l1_loss, pyramid_l1_losses, variance_loss
from wsi2ihc.training.options import VarianceKind

Array = npt.NDArray[np.float64]
SIZES = [(16, 16), (32, 20), (17, 31), (33, 16), (45, 57)]


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    fake, real = random.uniform(-1, 1, (2, *shape))
    return torch.from_numpy(fake), torch.from_numpy(real)


# --- the equations, written plainly ---


def numpy_cross_entropy(logits: Array, real: bool) -> float:
    chance = 1 / (1 + np.exp(-logits))
    return float(-np.log(chance if real else 1 - chance).mean())


def numpy_blur(image: Array) -> Array:
    kernel = np.exp(-np.add.outer(np.arange(-1, 2) ** 2, np.arange(-1, 2) ** 2) / 2)
    kernel /= kernel.sum()
    padded = np.pad(image, 1, mode="reflect")
    height, width = image.shape
    return sum(kernel[y, x] * padded[y : y + height, x : x + width] for y in range(3) for x in range(3))


def numpy_octaves(images: Array, octaves: int) -> list[list[Array]]:
    levels = [list(images.reshape(-1, *images.shape[2:]))]
    for _ in range(octaves - 1):
        planes = levels[-1]
        for _ in range(4):
            planes = [numpy_blur(plane) for plane in planes]
        levels.append([plane[::2, ::2] for plane in planes])
    return levels


def numpy_variance_term(fake: Array, real: Array, biased: bool) -> float:
    count, channels, height, width = fake.shape
    total = 0.0
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                variances = []
                for values in (fake[:, c, y, x], real[:, c, y, x]):
                    mean = sum(values) / count
                    variances.append(sum((value - mean) ** 2 for value in values) / (count if biased else count - 1))
                total += abs(variances[1] - variances[0])
    return total / (channels * height * width)


# --- adversarial ---


@pytest.mark.parametrize("real", [True, False])
def test_adversarial_loss(real: bool) -> None:
    logits, _ = pair((2, 1, 5, 4))
    logits *= 6
    assert float(adversarial_loss(logits, real)) == pytest.approx(numpy_cross_entropy(logits.numpy(), real), rel=1e-6)


def test_discriminator_loss_is_the_mean_of_two_terms() -> None:
    on_fake, on_real = pair((2, 1, 5, 4))
    expected = (numpy_cross_entropy(on_fake.numpy(), False) + numpy_cross_entropy(on_real.numpy(), True)) / 2
    assert float(discriminator_loss(on_fake, on_real)) == pytest.approx(expected, rel=1e-6)


def test_adversarial_loss_of_large_logits_is_finite() -> None:
    assert float(adversarial_loss(torch.tensor([1e4]), False)) == pytest.approx(1e4)


# --- L1 and pyramid ---


def test_l1_loss() -> None:
    fake, real = pair((2, 3, 7, 5))
    assert float(l1_loss(fake, real)) == pytest.approx(float(np.abs(fake.numpy() - real.numpy()).mean()), rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_pyramid_of_difference_equals_that_of_both_images(size: tuple[int, int]) -> None:
    fake, real = pair((2, 3, *size))
    losses = pyramid_l1_losses(fake, real)
    levels = zip(numpy_octaves(fake.numpy(), 4), numpy_octaves(real.numpy(), 4), strict=True)
    expected = [np.mean([np.abs(f - r) for f, r in zip(fakes, reals, strict=True)]) for fakes, reals in levels]
    assert [float(loss) for loss in losses] == pytest.approx(expected, rel=1e-6)
    assert len(losses) == 4


def test_pyramid_of_other_depths() -> None:
    fake, real = pair((1, 3, 9, 8))
    all_losses = pyramid_l1_losses(fake, real, 3)
    assert len(all_losses) == 3
    assert pyramid_l1_losses(fake, real, 1) == (all_losses[0],)
    assert float(all_losses[0]) == float(l1_loss(fake, real))


def test_pyramid_of_a_constant_difference_is_the_same_at_all_scales() -> None:
    losses = pyramid_l1_losses(torch.full((1, 3, 21, 50), 0.25), torch.full((1, 3, 21, 50), -0.25))
    assert [float(loss) for loss in losses] == pytest.approx([0.5] * 4, rel=1e-6)


@pytest.mark.parametrize(("height", "width", "octaves"), [(15, 64, 4), (64, 15, 4), (31, 64, 5), (64, 64, 0)])
def test_images_too_small_for_the_pyramid(height: int, width: int, octaves: int) -> None:
    fake, real = pair((1, 3, height, width))
    with pytest.raises(OptionError, match=f"{width} x {height} px"):
        pyramid_l1_losses(fake, real, octaves)


# --- variance ---


@pytest.mark.parametrize("kind", ["unbiased", "biased"])
@pytest.mark.parametrize("count", [2, 5])
def test_variance_loss(kind: VarianceKind, count: int) -> None:
    fake, real = pair((count, 3, 4, 6))
    fake *= 0.7
    expected = numpy_variance_term(fake.numpy(), real.numpy(), biased=kind == "biased")
    assert float(variance_loss(fake, real, kind)) == pytest.approx(expected, rel=1e-6)


def test_variance_loss_of_one_image_is_an_error() -> None:
    fake, real = pair((1, 3, 4, 4))
    with pytest.raises(OptionError, match="at least two images"):
        variance_loss(fake, real)


def test_variance_loss_of_one_image_in_each_of_two_processes() -> None:
    # (as if the other process had the same image: no variance, and no error)
    fake, real = pair((1, 3, 4, 4))
    assert float(variance_loss(fake, real, total=lambda local: 2 * local, processes=2)) == pytest.approx(0, abs=1e-30)


def test_variance_loss_of_equal_batches_has_no_gradient() -> None:
    fake, _ = pair((3, 3, 4, 4))
    fake.requires_grad_()
    loss = variance_loss(fake, fake.detach().clone())
    (gradient,) = torch.autograd.grad(loss, fake)
    assert float(loss.detach()) == 0
    assert float(gradient.abs().max()) == 0


def test_variance_loss_is_exact_far_from_zero() -> None:
    # a sum of squares less the square of a sum would lose all its digits in float32
    fake, real = pair((8, 3, 4, 4))
    expected = float(variance_loss(fake, real))
    offset = variance_loss((fake / 64 + 60).float(), (real / 64 + 60).float())
    assert float(offset) * 64**2 == pytest.approx(expected, rel=1e-3)


# --- all ---

LOSSES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "adversarial": lambda fake, _: adversarial_loss(fake, True),
    "discriminator": discriminator_loss,
    "l1": l1_loss,
    "pyramid": lambda fake, real: pyramid_l1_losses(fake, real)[1:],
    "unbiased": variance_loss,
    "biased": lambda fake, real: variance_loss(fake, real, "biased"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    fake, real = pair((2, 1, 17, 16) if name == "pyramid" else (3, 2, 3, 4))
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, real), fake.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_precision(name: str) -> None:
    fake, real = (one.bfloat16() for one in pair((2, 3, 16, 16)))
    exact = torch.stack(_tuple(LOSSES[name](fake.double(), real.double())))
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        losses = torch.stack(_tuple(LOSSES[name](fake, real)))
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(exact.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["l1", "pyramid", "unbiased"])
def test_images_of_other_shapes(name: str) -> None:
    with pytest.raises(DatasetError, match="differ in shape"):
        LOSSES[name](torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def _tuple(losses: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return losses if isinstance(losses, tuple) else (losses,)
