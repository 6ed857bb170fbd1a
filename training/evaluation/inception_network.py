"""Inception v3 as released for TensorFlow on 2015-12-05, up to its last pooling.

The architecture is that of Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (CVPR 2016). The
release differs in its last block, which pools by the largest value and not by the mean. Means are taken over the pixels
that there are, not over the padding as well. Names of parameters are those of the port of the weights to PyTorch, which
fixes the names of blocks, branches and layers below.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

FEATURES = 2048

_CLASSES = 1008
_ADDED_TO_VARIANCE = 0.001


class _Convolution(NamedTuple):
    """A convolution without bias, then batch norm and ReLU.

    channels:   of its answer
    kernel:     rows, columns
    stride:     in both directions
    is_padded:  with zeros, so that with stride 1 the size stays
    """

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    is_padded: bool = True


class _Branch(NamedTuple):
    """Of a block: stages of one convolution, or of two side by side whose answers are joined; before them a pooling."""

    stages: tuple[tuple[_Convolution, ...], ...]
    pooling: nn.Module | None = None


class InceptionV3(nn.Module):
    """Takes (N, 3, 299, 299) float32 in [-1, 1), gives (N, 2048).

    The classifier ``fc`` is not used. It is here because it is in the file of weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, _reducing(32))
        self.Conv2d_2a_3x3 = _Unit(32, _Convolution(32, (3, 3), is_padded=False))
        self.Conv2d_2b_3x3 = _Unit(32, _Convolution(64, (3, 3)))
        self.Conv2d_3b_1x1 = _Unit(64, _Convolution(80, (1, 1)))
        self.Conv2d_4a_3x3 = _Unit(80, _Convolution(192, (3, 3), is_padded=False))
        channels = 192
        self._blocks: list[_Block] = []
        for name, branches in _blocks().items():
            block = _Block(channels, branches)
            self.add_module(name, block)
            self._blocks.append(block)
            channels = block.channels
        self.fc = nn.Linear(channels, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 299, 299) to (N, 2048)."""
        halving = _halving()
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halving(x)))
        x = halving(x)
        for block in self._blocks:
            x = block(x)
        return x.mean((2, 3))


class _Unit(nn.Module):
    """A convolution, batch norm and ReLU."""

    def __init__(self, inputs: int, layer: _Convolution) -> None:
        super().__init__()
        rows, columns = layer.kernel
        padding = (rows // 2, columns // 2) if layer.is_padded else (0, 0)
        self.conv = nn.Conv2d(inputs, layer.channels, layer.kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.channels, eps=_ADDED_TO_VARIANCE)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.bn(self.conv(x))
        return normalised.relu_()


class _Block(nn.Module):
    """Branches on the same input, their answers joined.

    The stages of a branch are numbered (``branch5x5_1``) if there are several; convolutions side by side have letters
    as well (``branch3x3_2a``).
    """

    def __init__(self, inputs: int, branches: dict[str, _Branch]) -> None:
        super().__init__()
        self.channels = 0
        self._paths: list[list[list[nn.Module]]] = []  # branches, their stages, what is side by side
        for name, branch in branches.items():
            width = inputs
            path: list[list[nn.Module]] = [] if branch.pooling is None else [[branch.pooling]]
            for number, stage in enumerate(branch.stages, 1):
                path.append([_Unit(width, layer) for layer in stage])
                for letter, unit in zip("ab", path[-1], strict=False):
                    suffix = f"_{number}{letter if len(stage) > 1 else ''}" if len(branch.stages) > 1 else ""
                    self.add_module(name + suffix, unit)
                width = sum(layer.channels for layer in stage)
            self._paths.append(path)
            self.channels += width

    def forward(self, x: Tensor) -> Tensor:
        answers = []
        for path in self._paths:
            answer = x
            for stage in path:
                parts = [module(answer) for module in stage]
                answer = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            answers.append(answer)
        return torch.cat(answers, 1)


def _blocks() -> dict[str, dict[str, _Branch]]:
    """All blocks in order, at 35, 17 and 8 px."""
    return {
        "Mixed_5b": _block_35(32),
        "Mixed_5c": _block_35(64),
        "Mixed_5d": _block_35(64),
        "Mixed_6a": {
            "branch3x3": _branch(_reducing(384)),
            "branch3x3dbl": _branch(_square(64, 1), _square(96, 3), _reducing(96)),
            "branch_pool": _Branch((), _halving()),
        },
        "Mixed_6b": _block_17(128),
        "Mixed_6c": _block_17(160),
        "Mixed_6d": _block_17(160),
        "Mixed_6e": _block_17(192),
        "Mixed_7a": {
            "branch3x3": _branch(_square(192, 1), _reducing(320)),
            "branch7x7x3": _branch(_square(192, 1), _row(192, 7), _column(192, 7), _reducing(192)),
            "branch_pool": _Branch((), _halving()),
        },
        "Mixed_7b": _block_8(_mean()),
        "Mixed_7c": _block_8(nn.MaxPool2d(3, stride=1, padding=1)),
    }


def _block_35(pooled: int) -> dict[str, _Branch]:
    """Figure 5 of the paper, but for one 5×5 that is left whole."""
    return {
        "branch1x1": _branch(_square(64, 1)),
        "branch5x5": _branch(_square(48, 1), _square(64, 5)),
        "branch3x3dbl": _branch(_square(64, 1), _square(96, 3), _square(96, 3)),
        "branch_pool": _branch(_square(pooled, 1), pooling=_mean()),
    }


def _block_17(width: int) -> dict[str, _Branch]:
    """Figure 6 of the paper, with n = 7."""
    return {
        "branch1x1": _branch(_square(192, 1)),
        "branch7x7": _branch(_square(width, 1), _row(width, 7), _column(192, 7)),
        "branch7x7dbl": _branch(_square(width, 1), _column(width, 7), _row(width, 7), _column(width, 7), _row(192, 7)),
        "branch_pool": _branch(_square(192, 1), pooling=_mean()),
    }


def _block_8(pooling: nn.Module) -> dict[str, _Branch]:
    """Figure 7 of the paper."""
    split = (_row(384, 3), _column(384, 3))
    return {
        "branch1x1": _branch(_square(320, 1)),
        "branch3x3": _branch(_square(384, 1), split),
        "branch3x3dbl": _branch(_square(448, 1), _square(384, 3), split),
        "branch_pool": _branch(_square(192, 1), pooling=pooling),
    }


def _branch(*stages: _Convolution | tuple[_Convolution, _Convolution], pooling: nn.Module | None = None) -> _Branch:
    return _Branch(tuple((stage,) if isinstance(stage, _Convolution) else stage for stage in stages), pooling)


def _square(channels: int, side: int) -> _Convolution:
    return _Convolution(channels, (side, side))


def _row(channels: int, length: int) -> _Convolution:
    return _Convolution(channels, (1, length))


def _column(channels: int, length: int) -> _Convolution:
    return _Convolution(channels, (length, 1))


def _reducing(channels: int) -> _Convolution:
    return _Convolution(channels, (3, 3), stride=2, is_padded=False)


def _halving() -> nn.Module:
    return nn.MaxPool2d(3, stride=2)


def _mean() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
