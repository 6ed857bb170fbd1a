"""Losses of the recipes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from wsi2ihc.errors import DatasetError, OptionError

from .options import VarianceKind

_BLURS_PER_OCTAVE = 4


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: FunctionCtx, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


def summed_over_processes(local: Tensor) -> Tensor:
    """Sum a tensor over all processes, with the gradient that DDP's averaging makes exact.

    The gradient is correct for a loss whose full value every process has (`variance_loss`), if the path through
    ``local`` is the only one by which the images of this process affect it.

    All processes must call this equally often, with tensors of one shape. The gradient with respect to ``local`` is
    the incoming gradient times the number of processes. Without a process group, ``local`` itself is returned.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local
    total: Tensor = _Sum.apply(local)  # type: ignore[no-untyped-call]
    return total


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """Return the mean binary cross-entropy of the logits with the label ``real`` (or generated)."""
    logits = _full_precision(logits)
    labels = torch.full_like(logits, float(real))
    with _without_autocast(logits):
        return functional.binary_cross_entropy_with_logits(logits, labels)


def discriminator_loss(on_fake: Tensor, on_real: Tensor) -> Tensor:
    """Return the mean of the discriminator's two terms, from its logits on generated and on real images."""
    return (adversarial_loss(on_fake, False) + adversarial_loss(on_real, True)) / 2


def l1_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    fake, real = _pair(fake, real)
    return (fake - real).abs().mean()


def pyramid_l1_losses(fake: Tensor, real: Tensor, octaves: int = 4) -> tuple[Tensor, ...]:
    """Return the mean absolute difference at scales 1, 1/2, 1/4, …, one for each octave.

    From one octave to the next: four blurs with a 3x3 Gaussian of sigma 1 and reflected border, then every second pixel
    from the first; n pixels become ceil(n / 2). This is linear, so it is applied once to the difference; and separable,
    so it is one small matrix for each axis (`_octave_step`), exact at the borders too.

    Raises
    ------
    OptionError
        If a side is shorter than 2 to the power of ``octaves`` (16 px for four).
    DatasetError
        If the shapes differ.
    """
    fake, real = _pair(fake, real)
    height, width = fake.shape[-2:]
    if octaves < 1 or min(height, width) < 2**octaves:
        raise OptionError(
            f"images of {width} x {height} px are too small for {octaves} octaves: each side needs at least "
            f"{2**octaves} px; take larger crops"
        )
    difference = (fake - real).contiguous()
    losses = [difference.abs().mean()]
    with _without_autocast(difference):
        for _ in range(1, octaves):
            height, width = difference.shape[-2:]
            across = _octave_step(width, difference.dtype, difference.device)
            down = _octave_step(height, difference.dtype, difference.device)
            difference = down @ (difference @ across.T)
            losses.append(difference.abs().mean())
    return tuple(losses)


def variance_loss(
    fake: Tensor,
    real: Tensor,
    kind: VarianceKind = "unbiased",
    total: Callable[[Tensor], Tensor] = lambda local: local,
    processes: int = 1,
) -> Tensor:
    """Return the mean absolute difference of the batch variances of generated and real images (equations 6 to 10).

    Mean and variance are taken over the N images of the global batch, per channel and pixel; the loss is the mean of
    ``|var_real - var_fake|`` over channels and pixels.

    With several processes of n images each, N = n · processes, only sums are communicated: first the sum of the images,
    which gives the mean m, then the sum of ``(x - m)²``, which gives the variance; two reductions of 2 · 3 · H · W
    values.

    m is treated as a constant in the derivative. That is exact: the derivative of ``S = Σ (x_i - m)²`` with respect to
    m is ``-2 Σ (x_i - m)``, which is zero over the global batch. And it is necessary: over the images of one process
    that sum is *not* zero, and a process only differentiates its own images. So ``dS/dx_i`` is ``2 (x_i - m)``, and
    with `summed_over_processes` the gradient after DDP's averaging is that of a single process with all N images.

    Parameters
    ----------
    fake, real
        (n, 3, H, W); n the same in every process.
    kind
        Divide by N - 1 ("unbiased") or by N ("biased").
    total
        Sums a tensor over all processes: `summed_over_processes`.
    processes
        Number of processes.

    Raises
    ------
    OptionError
        If N is 1: there is no variance, and no gradient.
    DatasetError
        If the shapes differ.
    """
    fake, real = _pair(fake, real)
    count = len(fake) * processes
    if count < 2:
        raise OptionError(
            "the variance term needs at least two images in a batch (over all processes), since the variance of one "
            "has no gradient; raise the batch size, or choose a recipe without it"
        )
    means = total(torch.stack([fake.detach().sum(0), real.detach().sum(0)])) / count
    squares = torch.stack([(fake - means[0]).square().sum(0), (real - means[1]).square().sum(0)])
    fake_variance, real_variance = total(squares) / (count - 1 if kind == "unbiased" else count)
    loss: Tensor = (real_variance - fake_variance).abs().mean()
    return loss


@functools.lru_cache(maxsize=64)
def _octave_step(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of the step to the next octave along one axis: (ceil(size / 2), size)."""
    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    blur = torch.zeros(size, size, dtype=torch.float64)
    for offset, weight in ((-1, side), (0, 1 - 2 * side), (1, side)):
        for row in range(size):
            blur[row, size - 1 - abs(size - 1 - abs(row + offset))] += weight  # reflected at the border
    step: Tensor = torch.linalg.matrix_power(blur, _BLURS_PER_OCTAVE)[::2].to(dtype).to(device)
    return step


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _pair(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    if fake.shape != real.shape:
        raise DatasetError(f"generated images {tuple(fake.shape)} and references {tuple(real.shape)} differ in shape")
    return _full_precision(fake), _full_precision(real)


def _without_autocast(values: Tensor) -> AbstractContextManager[object]:
    kind = values.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
