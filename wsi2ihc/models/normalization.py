"""Normalization statistics of a slide, which are frozen into a network and make it local."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import ModelError
from ..geometry import RGBBatch
from .fused_resnet import to_network

_COMPARED_BATCHES = 2
_MOVED = "moved_levels"


@dataclass(frozen=True, slots=True)
class EstimatedStatistics:
    """Result of `estimate_statistics`."""

    module: nn.Module  # generator with frozen statistics, in evaluation mode
    # change of the mean output on the first batches, per channel, in gray levels. Stain strength can affect a
    # diagnosis, so users should be warned.
    moved_levels: tuple[float, float, float]


class _Pooled:
    """Forward hook that pools mean and variance of the input of a layer per channel, in float64."""

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
    """Freeze a generator's normalization at the statistics of a sample.

    In the returned copy, every BatchNorm2d and InstanceNorm2d is a BatchNorm2d with the mean and variance of its input
    over the sample (while the layers before it normalize by each batch). Dropout is off.

    ``batches`` are tissue, (N, 3, H, W) in [-1, 1] each; background would bias the statistics. Larger batches are
    closer to the statistics of the sample. Raises `ModelError` if there are none, or the statistics are not finite.
    """
    if not batches:
        raise ModelError("no tissue was sampled to estimate the generator's statistics from")
    device = next(module.parameters()).device
    compared = batches[:_COMPARED_BATCHES]
    before = _mean_output(copy.deepcopy(module).eval(), compared, device)
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
    moved = _mean_output(frozen, compared, device) - before
    red, green, blue = (float(value) * 127.5 for value in moved)
    return EstimatedStatistics(frozen, (red, green, blue))


def statistics_of_pixels(module: nn.Module, sample: Iterable[RGBBatch], device: torch.device) -> EstimatedStatistics:
    """Estimate statistics from images (N, H, W, 3) uint8 on ``device``; the result is on the CPU."""
    batches = [to_network(torch.from_numpy(np.require(batch, requirements=["C", "W"]))) for batch in sample]
    estimated = estimate_statistics(copy.deepcopy(module).to(device), batches)
    return EstimatedStatistics(estimated.module.cpu(), estimated.moved_levels)


def to_bytes(module: nn.Module, moved_levels: Sequence[float]) -> bytes:
    """Serialize the statistics of a frozen generator as a safetensors file."""
    tensors = {f"{name}.{kind}": value for name, kind, value in _statistics(module)}
    return save({**tensors, _MOVED: torch.tensor(moved_levels, dtype=torch.float64)})


def from_bytes(module: nn.Module, content: bytes) -> EstimatedStatistics:
    """Freeze a copy of a generator at statistics of `to_bytes`, bit by bit.

    Raises `ModelError` if they are damaged, or belong to another generator.
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
        raise ModelError(f"stored normalization statistics are damaged or another model's ({error!s:.80})") from error
    return EstimatedStatistics(frozen, (red, green, blue))


def _statistics(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (layer, kind, values) of the means and variances of all batch norms."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            yield name, "mean", _buffer(layer.running_mean)
            yield name, "variance", _buffer(layer.running_var)


def _mean_output(module: nn.Module, batches: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the mean output per channel over all batches."""
    with torch.inference_mode():
        sums = [module(batch.to(device)).sum((0, 2, 3)).cpu() for batch in batches]
    return torch.stack(sums).sum(0) / sum(batch.numel() // 3 for batch in batches)


def _with_batch_norms(module: nn.Module) -> nn.Module:
    """Replace every InstanceNorm2d by a BatchNorm2d, and add running statistics to every BatchNorm2d."""
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
    assert value is not None  # ensured by `_with_batch_norms`
    return value
