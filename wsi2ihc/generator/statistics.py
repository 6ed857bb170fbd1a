"""Normalisation statistics of a sample, frozen: makes a generator whose answer depends on the tile a local one.

Where a generator normalises by the statistics of its own input (InstanceNorm, or batch norm in training mode), every
tile has its own, and no overlap repairs the seams. Here all statistics are taken once over a sample and kept for the
whole slide. For batch norm this is also the exact form of what running averages approximate ("precise" statistics: Wu
and Johnson 2021, arXiv 2105.07576, section 3), and useful as the last step of training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..arrays import RGBBatch
from ..errors import ModelError
from .pixels import to_network

_COMPARED_BATCHES = 2
_MOVED = "moved_levels"


@dataclass(frozen=True, slots=True)
class EstimatedStatistics:
    """What `estimate_statistics` gives.

    module:        the generator with frozen statistics, in evaluation mode
    moved_levels:  by how many grey levels the mean of its answer moved, per channel, on the first batches. Stain
                   strength can be the diagnosis, so a user should be told of more than a few.
    """

    module: nn.Module
    moved_levels: tuple[float, float, float]


class _Pooled:
    """Mean and variance of a layer's input over all batches and places, per channel, pooled in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        count = x.numel() // x.shape[1]
        variance, mean = (one.cpu().double() for one in torch.var_mean(x, (0, 2, 3), correction=0))
        self.count += count
        self.sums += count * torch.stack([mean, variance + mean.square()])

    def moments(self) -> tuple[Tensor, Tensor]:
        mean, square = self.sums / self.count
        return mean, (square - mean.square()).clamp_min(0)


def estimate_statistics(module: nn.Module, batches: Sequence[Tensor]) -> EstimatedStatistics:
    """Freeze a generator's normalisation at the statistics of a sample.

    Every BatchNorm2d and InstanceNorm2d of the copy that is returned is a BatchNorm2d with the mean and the variance
    that its input had over the whole sample (while the layers before it normalised by each batch's own). Dropout is
    off. The module itself is not changed.

    Parameters
    ----------
    module:
        any network of convolutions and such norms
    batches:
        (N, 3, H, W) in [-1, 1] each; of tissue, since glass would move the statistics. The more images a batch holds,
        the nearer its own statistics are to the sample's. Held by the caller; read once, and the first few twice more.

    Raises
    ------
    ModelError
        If there is no batch, or the statistics are not finite.
    """
    if not batches:
        raise ModelError("no tissue was sampled to estimate the generator's statistics from")
    device = next(module.parameters()).device
    compared = batches[:_COMPARED_BATCHES]
    before = _mean_answer(copy.deepcopy(module).eval(), compared, device)
    frozen = _with_batch_norms(copy.deepcopy(module)).eval()
    norms = [layer for layer in frozen.modules() if isinstance(layer, nn.BatchNorm2d)]
    pools = [_Pooled(layer.num_features) for layer in norms]
    hooks = [layer.register_forward_pre_hook(pool) for layer, pool in zip(norms, pools, strict=True)]
    for layer in norms:
        layer.train()
    with torch.no_grad():
        for batch in batches:
            frozen(batch.to(device))
    for hook in hooks:
        hook.remove()
    for layer, pool in zip(norms, pools, strict=True):
        mean, variance = pool.moments()
        if not bool(torch.isfinite(mean + variance).all()):
            raise ModelError("the generator's statistics over the sampled tissue are not finite")
        _buffer(layer.running_mean).copy_(mean)
        _buffer(layer.running_var).copy_(variance)
    frozen.eval()
    moved = _mean_answer(frozen, compared, device) - before
    red, green, blue = (float(value) * 127.5 for value in moved)
    return EstimatedStatistics(frozen, (red, green, blue))


def statistics_of_pixels(module: nn.Module, sample: Iterable[RGBBatch], device: torch.device) -> EstimatedStatistics:
    """`estimate_statistics` over batches of images (N, H, W, 3) uint8, on ``device``; the answer is on the CPU."""
    batches = [to_network(torch.from_numpy(np.require(batch, requirements=["C", "W"]))) for batch in sample]
    estimated = estimate_statistics(copy.deepcopy(module).to(device), batches)
    return EstimatedStatistics(estimated.module.cpu(), estimated.moved_levels)


def to_bytes(module: nn.Module, moved_levels: Sequence[float]) -> bytes:
    """The statistics that a frozen generator normalises by, as the bytes of a safetensors file."""
    tensors = {f"{name}.{kind}": value for name, kind, value in _statistics(module)}
    return save({**tensors, _MOVED: torch.tensor(moved_levels, dtype=torch.float64)})


def from_bytes(module: nn.Module, content: bytes) -> EstimatedStatistics:
    """Freeze a generator's normalisation at statistics that `to_bytes` gave, to the bit. The module is not changed.

    Raises
    ------
    ModelError
        If they are damaged, or those of another generator.
    """
    frozen = _with_batch_norms(copy.deepcopy(module)).eval()
    try:
        tensors = load(content)
        red, green, blue = tensors.pop(_MOVED).tolist()
        for name, kind, value in _statistics(frozen):
            value.copy_(tensors.pop(f"{name}.{kind}").reshape(value.shape))
        if tensors:
            raise KeyError(next(iter(tensors)))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"stored normalisation statistics are damaged or another model's ({error!s:.80})") from error
    return EstimatedStatistics(frozen, (red, green, blue))


def _statistics(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(layer, kind, values) of the means and variances of all batch norms."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            yield name, "mean", _buffer(layer.running_mean)
            yield name, "variance", _buffer(layer.running_var)


def _mean_answer(module: nn.Module, batches: Sequence[Tensor], device: torch.device) -> Tensor:
    """The answer's mean per channel over all batches."""
    with torch.inference_mode():
        sums = [module(batch.to(device)).sum((0, 2, 3)).cpu() for batch in batches]
    return torch.stack(sums).sum(0) / sum(batch.numel() // 3 for batch in batches)


def _with_batch_norms(module: nn.Module) -> nn.Module:
    """Put a BatchNorm2d in the place of every InstanceNorm2d, and running statistics into every BatchNorm2d."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d) or (isinstance(child, nn.BatchNorm2d) and child.running_mean is None):
            norm = nn.BatchNorm2d(child.num_features, child.eps, affine=child.affine)
            if child.affine:
                norm.weight, norm.bias = child.weight, child.bias
            setattr(module, name, norm.to(next(module.parameters()).device))
        else:
            _with_batch_norms(child)
    return module


def _buffer(value: Tensor | None) -> Tensor:
    assert value is not None  # `_with_batch_norms` saw to it
    return value
