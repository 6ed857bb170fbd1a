"""How far a network looks: its dependency radius and lattice, computed from its layers.

Every layer maps an interval of output positions to the interval of input positions that it depends on; going backwards
through all layers from each single output position gives the reach. Padding needs no care: what a layer makes up
outside of its input takes the place of pixels that are within the reach.
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
from .dependency import Dependency
from .networks import BlurDownsample, BlurUpsample, ResnetBlock, ResnetGenerator, UnetBlock, UnetGenerator

_POINTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Sigmoid,
    _DropoutNd,
    _BatchNorm,
    _InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_PADDING = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.ConstantPad2d)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer along one axis.

    scale:   input px per output px
    needs:   first and last input position that the outputs from first to last depend on
    size:    how many outputs there are for so many inputs
    """

    scale: Fraction
    needs: Callable[[int, int], tuple[int, int]]
    size: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class _Skip:
    """Layers whose answer is joined (by a sum or a concatenation) with their input."""

    inner: list[_Layer | _Skip]


def dependency(module: nn.Module) -> Dependency:
    """Compute how far ``module`` looks, in the mode (training or evaluation) that it is in.

    Raises
    ------
    ModelError
        If it holds a layer whose reach is not known here, or its answer does not have the size of its input.
    """
    rows, columns = _steps(module, 0, "network"), _steps(module, 1, "network")
    lattice = math.lcm(_lattice(rows), _lattice(columns))
    for steps in (rows, columns):
        if _scale(steps) != 1 or _size(steps, 16 * lattice) != 16 * lattice:
            raise ModelError("the network's answer does not have the size of its input; it cannot translate a slide")
    per_phase = tuple(
        (max(left for left, _ in both), max(right for _, right in both))
        for both in zip(_reaches(rows, lattice), _reaches(columns, lattice), strict=True)
    )
    return Dependency(
        radius_px=max(max(reach) for reach in per_phase),
        lattice_px=lattice,
        per_phase=per_phase,
        reasons=tuple(_why_not_local(module)),
    )


def _why_not_local(module: nn.Module) -> Iterable[str]:
    """Yield what makes an output depend on the whole image, or on chance."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            yield f"{name} is a {kind} in training mode, so the answer depends on chance"
        elif isinstance(layer, _BatchNorm | _InstanceNorm):
            if isinstance(layer, _BatchNorm):
                own = layer.training or layer.running_mean is None
            else:
                own = layer.training or not layer.track_running_stats
            if own:
                yield f"{name} is a {kind} that looks at the statistics of its own input"
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            yield f"{name} is a {kind}, which looks at the statistics of its own input"


def _steps(module: nn.Module, axis: int, name: str) -> list[_Layer | _Skip]:
    """The layers of ``module`` along ``axis`` (0: rows, 1: columns), in order."""
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
    """One layer without children."""
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
    if isinstance(module, BlurUpsample):  # input i adds to the outputs from 2·i - 1 to 2·i + 2
        return _Layer(Fraction(1, 2), lambda first, last: (-((2 - first) // 2), (last + 1) // 2), lambda n: 2 * n)
    if isinstance(module, nn.Upsample) and (upsampling := _upsampling(module, axis)):
        return upsampling
    raise ModelError(f"it is not known how far the layer {name} ({module}) looks; it cannot be translated seamlessly")


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
    """Input i adds to the outputs from ``i * stride - before`` to ``i * stride - before + span``."""
    stride = module.stride[axis]
    span = module.dilation[axis] * (module.kernel_size[axis] - 1)
    before = module.padding[axis]
    if not isinstance(before, int):  # a word, which torch refuses here
        raise ModelError(f"a transposed convolution cannot be padded with {before!r}")
    extra = module.output_padding[axis]

    def needs(first: int, last: int) -> tuple[int, int]:
        ends = (-((span - first - before) // stride), (last + before) // stride)
        return min(ends), max(ends)

    return _Layer(Fraction(1, stride), needs, lambda n: (n - 1) * stride - 2 * before + span + 1 + extra)


def _upsampling(module: nn.Upsample, axis: int) -> _Layer | None:
    """Interpolation by a whole factor; None where it is of another kind."""
    factor = module.scale_factor
    factor = factor[axis] if isinstance(factor, tuple) else factor
    if factor is None or factor != int(factor):
        return None
    times = int(factor)
    scale = Fraction(1, times)
    if module.mode == "nearest":
        return _Layer(scale, lambda first, last: (first // times, last // times), lambda n: n * times)
    if module.mode == "bilinear" and not module.align_corners:
        # pixel i lies at (2·i + 1 - times) / (2·times) px of the input, between the two that it takes
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


def _reaches(steps: Sequence[_Layer | _Skip], lattice: int) -> list[tuple[int, int]]:
    needs = [_needs(steps, phase, phase) for phase in range(lattice)]
    return [(phase - first, last - phase) for phase, (first, last) in enumerate(needs)]


def _scale(steps: Sequence[_Layer | _Skip]) -> Fraction:
    return math.prod((step.scale for step in steps if isinstance(step, _Layer)), start=Fraction(1))


def _size(steps: Sequence[_Layer | _Skip], n: int) -> int:
    for step in steps:
        if isinstance(step, _Layer):
            n = step.size(n)
    return n


def _lattice(steps: Sequence[_Layer | _Skip], scale: Fraction = Fraction(1)) -> int:
    """The least shift of the input that is a whole number of px at every layer; ``scale``: input px per px before."""
    lattice = scale.numerator
    for step in steps:
        if isinstance(step, _Layer):
            scale *= step.scale
            lattice = math.lcm(lattice, scale.numerator)
        else:
            lattice = math.lcm(lattice, _lattice(step.inner, scale))
    return lattice
