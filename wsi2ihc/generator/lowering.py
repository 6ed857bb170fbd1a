"""The form of a local ResNet in which slides are translated: the same function, with less work and less memory.

- Batch norms are folded into the convolutions, dropout is dropped.
- Nothing is padded. Every convolution is "valid" and its answer smaller than its input, so that a window shrinks to its
  core on the way and no made-up border is computed. (Padding would only reach pixels that are not kept.)
- A doubling (transposed convolution, or bilinear ×2 and a convolution) is one small convolution at the lower
  resolution, which makes the four pixels of each 2×2 group as four groups of channels. That is faster, and it is exact:
  the sums in oneDNN's transposed convolution are split according to the height of its input, and pixels differed by up
  to 1e-4 between windows of different size; its convolutions gave bit-equal pixels in all sizes tried (channels-last
  memory, float32, oneDNN 3.12, AVX2 and AVX-512 kernels, 1 to 4 threads; for the exceptions see
  ``smallest_window_px``).
- On a CPU the layers run over strips of rows. Only the residual stream, at a quarter of the resolution, is held for the
  whole window, and its blocks overwrite it in place.

Tissue is bright and poor in contrast, and the first convolution has to take a small difference of large numbers. In
bfloat16 this made two thirds of the whole error. So that convolution takes whole pixel levels less the mean colour,
which are exact, and its weights are kept as sums of two bfloat16 numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ModelError
from ..geometry import ceil_to
from .networks import ResnetBlock, ResnetGenerator
from .pixels import fold_pixels, tanh_of_finite, to_centred, to_pixels
from .reach import dependency

STRIP_BYTES = 8 << 20
"""Size aimed at for a strip's largest activation: it stays in the cache, or in memory that was used just before."""

_ATEN_SMALL = 20_480
"""ATen gives float32 inputs of up to so many values to another library than oneDNN, which sums in another order."""

_NARROW_BF16 = 64
"""oneDNN's bfloat16 kernels for AMX sum in another order where rows are narrower than 57 px (measured)."""

_LATTICE = 4

# How output pixels 0 and 1 of a pair depend on neighbouring pixels at the lower resolution: [output][pixel][weight].
# Transposed, stride 2, padding 1: pixel i and weight k add to output 2·i - 1 + k; the pixels are i and i + 1.
_TRANSPOSED_TAPS: list[list[list[float]]] = [[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]]
# Bilinear ×2, then a 3×3 convolution: the pixels are i - 1, i and i + 1. Pixel i lies at 2·i + 1/2 of the doubled
# image, in which each pixel takes 3/4 of the nearer and 1/4 of the farther of the two that it lies between.
_BILINEAR_TAPS: list[list[list[float]]] = [
    [[3 / 4, 1 / 4, 0], [1 / 4, 3 / 4, 3 / 4], [0, 0, 1 / 4]],
    [[1 / 4, 0, 0], [3 / 4, 3 / 4, 1 / 4], [0, 1 / 4, 3 / 4]],
]


class Margins(NamedTuple):
    """What the valid convolutions consume around the core, in px of the window.

    left, right:   px that the computation needs before and after the core
    halo:          the larger of the two, rounded up to the lattice
    cut:           px of the answer that come before the core
    """

    left: int
    right: int
    halo: int
    cut: int


def can_lower(module: nn.Module) -> bool:
    """Whether `LoweredResnet` knows this network and its norms, and it is a local function in its present mode."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    has_batch_norms = bool(norms) and all(isinstance(layer, nn.BatchNorm2d) for layer in norms)
    is_known = isinstance(module, ResnetGenerator) and not module.antialiasing
    return is_known and has_batch_norms and dependency(module).is_local


class LoweredResnet(nn.Module):
    """A ResNet from windows (N, H, W, 3) uint8 to cores (N, H - 2·halo, W - 2·halo, 3) uint8; H, W multiples of 4.

    With ``by_strips`` (for CPUs), images are done one by one, each in strips of rows. Memory bound: the residual stream
    of one image (at a quarter of the resolution, 4·width channels), about four times `STRIP_BYTES` (less for small
    windows), and the answer. Without, the whole batch is done at once, and the two largest activations bound it.

    Raises
    ------
    ModelError
        If the network is not local: then there is no such form of it.
    """

    centre: Tensor

    def __init__(self, module: ResnetGenerator, dtype: torch.dtype = torch.float32, *, by_strips: bool = True) -> None:
        super().__init__()
        reasons = dependency(module).reasons
        if reasons:
            raise ModelError(f"the network is no local function of its input: {reasons[0]}")
        layers = list(module.model)
        blocks = [layer for layer in layers if isinstance(layer, ResnetBlock)]
        end = 10 + len(blocks)
        self.dtype = dtype
        self.by_strips = by_strips
        self.stem, centre = _on_centred_pixels(_fold(layers[1], layers[2]), is_split=dtype == torch.bfloat16)
        self.register_buffer("centre", centre)
        self.downs = nn.ModuleList([_fold(layers[4], layers[5]), _fold(layers[7], layers[8])])
        self.body = nn.ModuleList(layer for block in blocks for layer in _folded_block(block))
        self.ups = nn.ModuleList([_doubling(layers[end], layers[end + 1]), _doubling(layers[end + 3], layers[end + 4])])
        self.head = _fold(layers[end + 7], None)
        self.channels = 4 * self.stem.out_channels
        self.taps = int(self.ups[0].kernel_size[0])  # type: ignore[index]
        self.margins = _margins(len(blocks), self.taps)
        self._more = ceil_to(6 * self.taps, 4) // 4  # rows at a quarter that the tail takes beyond a quarter of its own
        self.to(dtype=dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @property
    def halo_px(self) -> int:
        """Context that it takes on each side of the core: at least the dependency radius, and a multiple of 4."""
        return self.margins.halo

    @property
    def smallest_window_px(self) -> int:
        """Least side of windows among which, whatever their size, pixels are bit-equal (on a CPU)."""
        side = math.isqrt(_ATEN_SMALL // self.channels) + 1
        if self.dtype == torch.bfloat16:
            side = max(side, _NARROW_BF16)
        return _LATTICE * side + 2 * self.halo_px

    def working_bytes(self, height: int, width: int) -> int:
        """Memory beyond the weights for a window of this size; by the layers' sizes, and true to 15 % when measured."""
        four_rows = 4 * width * self.stem.out_channels * self.dtype.itemsize
        if not self.by_strips:
            return 3 * four_rows * height // 4
        stream = height * width * self.channels * self.dtype.itemsize // 16
        first, after = next(_strips(height // 4, four_rows))
        # In the tail: a doubling's answer, its reordered copy, its input, and values of the strip before.
        return stream + 7 * four_rows * (after - first + self._more) // 2 + 3 * height * width

    def forward(self, windows: Tensor) -> Tensor:
        """Translate; raises `ModelError` if the answer is not finite."""
        _, height, width, _ = windows.shape
        before, after = self.halo_px - self.margins.left, self.halo_px - self.margins.right
        seen = windows[:, before : height - after, before : width - after]
        cores = windows.new_empty((len(windows), height - 2 * self.halo_px, width - 2 * self.halo_px, 3))
        if self.by_strips:
            for one, core in zip(torch.split(seen, 1), torch.split(cores, 1), strict=True):
                self._translate_by_strips(one, core)
            return cores
        cut, (rows, columns) = self.margins.cut, cores.shape[1:3]
        values = self._tail(self._body(self._front(seen)))
        return to_pixels(values[:, :, cut : cut + rows, cut : cut + columns])

    def _front(self, pixels: Tensor) -> Tensor:
        """From 4·n + 9 rows (and columns) of pixels to n at a quarter of the resolution."""
        if self.stem.in_channels == 6:
            pixels = pixels.repeat(1, 1, 1, 2)
        x: Tensor = self.stem(to_centred(pixels, self.centre)).relu_()
        for down in self.downs:
            x = down(x).relu_()
        return x

    def _blocks(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        layers = list(self.body)
        return zip(layers[::2], layers[1::2], strict=True)

    def _body(self, x: Tensor) -> Tensor:
        """All residual blocks; each takes 2 rows and columns off every side."""
        for first, second in self._blocks():
            x = second(first(x).relu_()).add_(x[:, :, 2:-2, 2:-2])
        return x

    def _tail(self, x: Tensor) -> Tensor:
        """N rows (and columns) at a quarter of the resolution to 4·n - 6·taps rows of values in [-1, 1]."""
        for up in self.ups:
            x = _unfolded(up(x).relu_())
        answer: Tensor = self.head(x)
        return tanh_of_finite(answer.float())

    def _translate_by_strips(self, seen: Tensor, core: Tensor) -> None:
        """Translate one window (1, H, W, 3) into ``core``, strip by strip."""
        size = self.dtype.itemsize
        height, width = (seen.shape[1] - 9) // 4, (seen.shape[2] - 9) // 4
        four_rows = 4 * seen.shape[2] * self.stem.out_channels * size
        memory = torch.empty(height * width * self.channels, dtype=self.dtype, device=seen.device)

        stream = _image(memory, height, width, self.channels)
        for start, stop in _strips(height, four_rows):
            stream[:, :, start:stop] = self._front(seen[:, 4 * start : 4 * stop + 9])

        # A block's answer goes over its own input: its rows are shorter, and written after theirs have been read.
        for first, second in self._blocks():
            old, height, width = stream, height - 4, width - 4
            stream = _image(memory, height, width, self.channels)
            for start, stop in _strips(height, width * self.channels * size):
                branch = second(first(old[:, :, start : stop + 4]).relu_())
                stream[:, :, start:stop] = branch.add_(old[:, :, start + 2 : stop + 2, 2:-2])

        rows, columns = core.shape[1:3]
        cut = self.margins.cut
        for start, stop in _strips(ceil_to(rows + cut, 4) // 4, four_rows):
            values = self._tail(stream[:, :, start : stop + self._more])
            top, bottom = max(4 * start - cut, 0), min(4 * stop - cut, rows)
            first_row = top + cut - 4 * start
            core[:, top:bottom] = to_pixels(values[:, :, first_row : first_row + bottom - top, cut : cut + columns])


def _margins(blocks: int, taps: int) -> Margins:
    """Compute the margins for a core that starts at px 0 and is a multiple of 4 long.

    The front makes n px at a quarter of 4·n + 9 px, from 4·q - 6 on; a block takes 2 off either end; the tail makes
    4·n - 6·taps px of n, from 4·q + 6·(taps - 2) + 3 on.
    """
    shift = 6 * (taps - 2) + 3
    start = -ceil_to(shift, _LATTICE) // _LATTICE
    cut = -(_LATTICE * start + shift)
    length = ceil_to(cut + 6 * taps, _LATTICE) // _LATTICE
    left = 6 - _LATTICE * (start - 2 * blocks)
    right = _LATTICE * (length + 4 * blocks) + 9 - left
    return Margins(left, right, ceil_to(max(left, right), _LATTICE), cut)


def _strips(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows into strips of about `STRIP_BYTES`, all of nearly the same height."""
    count = min(max(1, round(rows * row_bytes / STRIP_BYTES)), rows)
    return itertools.pairwise(rows * i // count for i in range(count + 1))


def _image(memory: Tensor, height: int, width: int, channels: int) -> Tensor:
    """The start of ``memory`` as one image (1, channels, height, width) in channels-last order."""
    return memory[: height * width * channels].view(1, height, width, channels).permute(0, 3, 1, 2)


def _unfolded(x: Tensor) -> Tensor:
    """Channels (2, 2, C) of (N, 4·C, H, W) to pixels (N, C, 2·H, 2·W), in channels-last order."""
    n, channels, height, width = x.shape
    groups = x.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, channels // 4).transpose(2, 3)
    return groups.reshape(n, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


def _convolution(weight: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv2d:
    """A convolution without padding, with copies of these weights. (Made on "meta", so that none are drawn first.)"""
    outputs, inputs, rows, columns = weight.shape
    layer = nn.Conv2d(inputs, outputs, (rows, columns), stride, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _fold(layer: nn.Module, norm: nn.Module | None) -> nn.Conv2d:
    """A convolution and the batch norm after it, if any, as one convolution without padding."""
    if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d | None):
        raise TypeError(f"cannot fold {norm} into {layer}")
    if norm is not None:
        layer = fuse_conv_bn_eval(layer, norm)
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_channels)
    return _convolution(layer.weight, bias, layer.stride[0])


def _folded_block(block: ResnetBlock) -> Iterator[nn.Conv2d]:
    for layer, norm in itertools.pairwise(block.conv_block):
        if isinstance(layer, nn.Conv2d):
            yield _fold(layer, norm)


def _doubling(layer: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """A doubling and its batch norm as one convolution at the lower resolution, for `_unfolded`."""
    if isinstance(layer, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
        transposed = fuse_conv_bn_eval(layer, norm, transpose=True)
        weight, bias, taps = transposed.weight.transpose(0, 1), transposed.bias, _TRANSPOSED_TAPS
    elif isinstance(layer, nn.Sequential):
        single = _fold(layer[2], norm)
        weight, bias, taps = single.weight, single.bias, _BILINEAR_TAPS
    else:
        raise TypeError(f"cannot lower {layer} and {norm}")
    assert bias is not None  # folding a batch norm makes one
    pick = torch.tensor(taps, dtype=weight.dtype, device=weight.device)
    phases = torch.einsum("aik,bjl,ockl->abocij", pick, pick, weight.detach())
    return _convolution(phases.flatten(0, 2), bias.repeat(4))


def _on_centred_pixels(stem: nn.Conv2d, is_split: bool) -> tuple[nn.Conv2d, Tensor]:
    """The first convolution on pixels as `to_centred` gives them (taken twice if its weights are split); the centre."""
    assert stem.bias is not None
    weight, bias, centre = fold_pixels(stem.weight.detach(), stem.bias.detach())
    if is_split:
        coarse = weight.bfloat16().float()
        weight, centre = torch.cat([coarse, weight - coarse], 1), centre.repeat(2)
    return _convolution(weight, bias), centre
