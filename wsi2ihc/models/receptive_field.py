"""Receptive field and stride of a network, computed from its layers.

Each layer is reduced to intervals along one axis: the input positions that an interval of outputs depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import ModelError
from .model_spec import Dependency
from .networks import BlurDownsample, BlurUpsample, ResnetBlock, ResnetGenerator, UnetBlock, UnetGenerator

_POINTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, _DropoutNd, _BatchNorm, _InstanceNorm, nn.GroupNorm,
    nn.LayerNorm,
)  # fmt: skip
_PADDING = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.ConstantPad2d)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer along one axis."""

    scale: Fraction  # input px per output px
    # function from an interval of outputs (first, last) to the interval of inputs that they depend on
    needs: Callable[[int, int], tuple[int, int]]
    size: Callable[[int], int]  # function from the number of inputs to the number of outputs


@dataclass(frozen=True, slots=True)
class _Skip:
    """Layers whose output is joined with their input, by a sum or concatenation."""

    inner: list[_Layer | _Skip]


def dependency(module: nn.Module) -> Dependency:
    """Compute the receptive field of ``module`` in its present mode (training or evaluation).

    Raises `ModelError` if it has an unknown layer, or its output does not have the size of its input.
    """
    rows, columns = _steps(module, 0, "network"), _steps(module, 1, "network")
    stride = math.lcm(_stride(rows), _stride(columns))
    for steps in (rows, columns):
        if _scale(steps) != 1 or _size(steps, 16 * stride) != 16 * stride:
            raise ModelError(
                "the output of the network does not have the size of its input; it cannot translate a slide"
            )
    per_phase = tuple(
        (max(left for left, _ in both), max(right for _, right in both))
        for both in zip(_extents(rows, stride), _extents(columns, stride), strict=True)
    )
    return Dependency(
        radius_px=max(max(extent) for extent in per_phase),
        stride_px=stride,
        per_phase=per_phase,
        reasons=tuple(_nonlocal_reasons(module)),
    )


def _nonlocal_reasons(module: nn.Module) -> Iterable[str]:
    """Yield reasons why outputs depend on the complete image, or on random numbers."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            yield f"{name} is a {kind} in training mode, so the output is random"
        elif isinstance(layer, _BatchNorm | _InstanceNorm):
            is_batch = isinstance(layer, _BatchNorm)
            has_statistics = layer.running_mean is not None if is_batch else layer.track_running_stats
            if layer.training or not has_statistics:
                yield f"{name} is a {kind} that normalizes by the statistics of its input"
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            yield f"{name} is a {kind}, which normalizes by the statistics of its input"


def _steps(module: nn.Module, axis: int, name: str) -> list[_Layer | _Skip]:
    """List the layers of ``module`` along ``axis`` (0: rows, 1: columns), in order."""
    if isinstance(module, nn.Sequential):
        return [step for i, child in enumerate(module) for step in _steps(child, axis, f"{name}.{i}")]
    if isinstance(module, ResnetGenerator | UnetGenerator):
        return _steps(module.model, axis, f"{name}.model")
    if isinstance(module, ResnetBlock):
        return [_skip(_steps(module.conv_block, axis, f"{name}.conv_block"), name)]
    if isinstance(module, UnetBlock):
        inner = _steps(module.model, axis, f"{name}.model")
        return [_skip(inner, name)] if module.has_skip else inner
    return [_layer(module, axis, name)]


def _skip(inner: list[_Layer | _Skip], name: str) -> _Skip:
    if _scale(inner) != 1:
        raise ModelError(f"{name} joins images of different resolution")
    return _Skip(inner)


def _layer(module: nn.Module, axis: int, name: str) -> _Layer:
    """Describe a layer without children."""
    if isinstance(module, _POINTWISE):
        return _Layer(Fraction(1), lambda first, last: (first, last), lambda n: n)
    if isinstance(module, _PADDING):
        left, right, top, bottom = module.padding
        before, after = ((top, bottom), (left, right))[axis]
        return _Layer(Fraction(1), lambda first, last: (first - before, last - before), lambda n: n + before + after)
    if isinstance(module, nn.Conv2d) and module.padding_mode != "circular":
        return _convolution(module, axis)
    if isinstance(module, nn.ConvTranspose2d):
        return _transposed(module, axis)
    if isinstance(module, BlurDownsample):
        return _Layer(Fraction(2), lambda first, last: (2 * first - 1, 2 * last + 1), lambda n: (n - 1) // 2 + 1)
    if isinstance(module, BlurUpsample):  # input i affects outputs from 2·i - 1 to 2·i + 2
        return _Layer(Fraction(1, 2), lambda first, last: (-((2 - first) // 2), (last + 1) // 2), lambda n: 2 * n)
    if isinstance(module, nn.Upsample) and (upsampling := _upsampling(module, axis)):
        return upsampling
    raise ModelError(f"the receptive field of layer {name} ({module}) is unknown; it cannot be translated seamlessly")


def _convolution(module: nn.Conv2d, axis: int) -> _Layer:
    stride = module.stride[axis]
    span = module.dilation[axis] * (module.kernel_size[axis] - 1)
    if isinstance(module.padding, str):
        total = span if module.padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before = after = module.padding[axis]
    return _Layer(
        Fraction(stride),
        lambda first, last: (first * stride - before, last * stride - before + span),
        lambda n: (n + before + after - span - 1) // stride + 1,
    )


def _transposed(module: nn.ConvTranspose2d, axis: int) -> _Layer:
    """Describe a layer whose input i affects outputs ``i * stride - before`` to ``i * stride - before + span``."""
    stride = module.stride[axis]
    span = module.dilation[axis] * (module.kernel_size[axis] - 1)
    before = module.padding[axis]
    if not isinstance(before, int):  # a string, which torch refuses here
        raise ModelError(f"a transposed convolution cannot be padded with {before!r}")
    extra = module.output_padding[axis]

    def needs(first: int, last: int) -> tuple[int, int]:
        ends = (-((span - first - before) // stride), (last + before) // stride)
        return min(ends), max(ends)

    return _Layer(Fraction(1, stride), needs, lambda n: (n - 1) * stride - 2 * before + span + 1 + extra)


def _upsampling(module: nn.Upsample, axis: int) -> _Layer | None:
    """Describe interpolation by an integer factor; None for other kinds."""
    factor = module.scale_factor
    factor = factor[axis] if isinstance(factor, tuple) else factor
    if factor is None or factor != int(factor):
        return None
    times = int(factor)
    scale = Fraction(1, times)
    if module.mode == "nearest":
        return _Layer(scale, lambda first, last: (first // times, last // times), lambda n: n * times)
    if module.mode == "bilinear" and not module.align_corners:
        # pixel i lies at (2·i + 1 - times) / (2·times) px of the input, between the two that it depends on
        twice = 2 * times
        return _Layer(
            scale,
            lambda first, last: ((2 * first + 1 - times) // twice, -((times - 1 - 2 * last) // twice)),
            lambda n: n * times,
        )
    return None


def _needs(steps: Sequence[_Layer | _Skip], first: int, last: int) -> tuple[int, int]:
    for step in reversed(steps):
        if isinstance(step, _Layer):
            first, last = step.needs(first, last)
        else:
            inner_first, inner_last = _needs(step.inner, first, last)
            first, last = min(first, inner_first), max(last, inner_last)
    return first, last


def _extents(steps: Sequence[_Layer | _Skip], stride: int) -> list[tuple[int, int]]:
    needs = [_needs(steps, phase, phase) for phase in range(stride)]
    return [(phase - first, last - phase) for phase, (first, last) in enumerate(needs)]


def _scale(steps: Sequence[_Layer | _Skip]) -> Fraction:
    return math.prod((step.scale for step in steps if isinstance(step, _Layer)), start=Fraction(1))


def _size(steps: Sequence[_Layer | _Skip], n: int) -> int:
    for step in steps:
        if isinstance(step, _Layer):
            n = step.size(n)
    return n


def _stride(steps: Sequence[_Layer | _Skip], scale: Fraction = Fraction(1)) -> int:
    """Return the smallest shift of the input that is an integer number of px at every layer.

    ``scale`` is the number of input px per px of the first layer.
    """
    stride = scale.numerator
    for step in steps:
        if isinstance(step, _Layer):
            scale *= step.scale
            stride = math.lcm(stride, scale.numerator)
        else:
            stride = math.lcm(stride, _stride(step.inner, scale))
    return stride
