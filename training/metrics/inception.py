"""Inception v3 features for FID and KID, with weights from a local file.

`load_inception` reads the weights, `to_inception` resizes and scales images like TensorFlow 1, and `features` runs the
network in batches.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wsi2ihc.errors import DatasetError, ModelError, OptionError
from wsi2ihc.geometry import RGBBatch
from wsi2ihc.models.device import one_device
from wsi2ihc.models.model_file import COUNTER
from wsi2ihc.models.model_spec import file_sha256

FEATURES = 2048

_CLASSES = 1008
_ADDED_TO_VARIANCE = 0.001

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

SIDE_PX = 299
"""Side of the network's input."""

BATCH = 8
"""Images processed at a time."""


class _Conv(NamedTuple):
    """A convolution without bias, followed by batch norm and ReLU."""

    channels: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    is_padded: bool = True  # with zeros, so that stride 1 keeps the size


class _Branch(NamedTuple):
    """Branch of a block: an optional pooling, then stages of one convolution or of two in parallel whose outputs are
    joined.
    """

    stages: tuple[tuple[_Conv, ...], ...]
    pooling: nn.Module | None = None


class InceptionV3(nn.Module):
    """The network: (N, 3, 299, 299) float32 in [-1, 1) to (N, 2048).

    The classifier ``fc`` is unused; the weights file contains it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, _reducing(32))
        self.Conv2d_2a_3x3 = _Unit(32, _Conv(32, 3, 3, is_padded=False))
        self.Conv2d_2b_3x3 = _Unit(32, _Conv(64, 3, 3))
        self.Conv2d_3b_1x1 = _Unit(64, _Conv(80))
        self.Conv2d_4a_3x3 = _Unit(80, _Conv(192, 3, 3, is_padded=False))
        channels = 192
        self._blocks: list[_Block] = []
        for name, branches in _blocks().items():
            block = _Block(channels, branches)
            self.add_module(name, block)
            self._blocks.append(block)
            channels = block.channels
        self.fc = nn.Linear(channels, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (N, 2048) of (N, 3, 299, 299)."""
        halving = _halving()
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halving(x)))
        x = halving(x)
        for block in self._blocks:
            x = block(x)
        return x.mean((2, 3))


class _Unit(nn.Module):
    def __init__(self, inputs: int, layer: _Conv) -> None:
        super().__init__()
        kernel = layer.rows, layer.columns
        padding = (layer.rows // 2, layer.columns // 2) if layer.is_padded else (0, 0)
        self.conv = nn.Conv2d(inputs, layer.channels, kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.channels, eps=_ADDED_TO_VARIANCE)

    def forward(self, x: Tensor) -> Tensor:
        normalized: Tensor = self.bn(self.conv(x))
        return normalized.relu_()


class _Block(nn.Module):
    """Branches with the same input whose outputs are joined.

    The stages of a branch are numbered (``branch5x5_1``) if there are several; parallel convolutions also have letters
    (``branch3x3_2a``).
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
        outputs = []
        for path in self._paths:
            output = x
            for stage in path:
                parts = [module(output) for module in stage]
                output = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            outputs.append(output)
        return torch.cat(outputs, 1)


def _blocks() -> dict[str, dict[str, _Branch]]:
    """Return all blocks in order, at 35, 17 and 8 px."""
    return {
        "Mixed_5b": _block_35(32),
        "Mixed_5c": _block_35(64),
        "Mixed_5d": _block_35(64),
        "Mixed_6a": {
            "branch3x3": _branch(_reducing(384)),
            "branch3x3dbl": _branch(_Conv(64), _Conv(96, 3, 3), _reducing(96)),
            "branch_pool": _Branch((), _halving()),
        },
        "Mixed_6b": _block_17(128),
        "Mixed_6c": _block_17(160),
        "Mixed_6d": _block_17(160),
        "Mixed_6e": _block_17(192),
        "Mixed_7a": {
            "branch3x3": _branch(_Conv(192), _reducing(320)),
            "branch7x7x3": _branch(_Conv(192), _Conv(192, 1, 7), _Conv(192, 7, 1), _reducing(192)),
            "branch_pool": _Branch((), _halving()),
        },
        "Mixed_7b": _block_8(_mean()),
        "Mixed_7c": _block_8(nn.MaxPool2d(3, stride=1, padding=1)),
    }


def _block_35(pooled: int) -> dict[str, _Branch]:
    """Figure 5 of the paper, except that one 5×5 is not factorized."""
    return {
        "branch1x1": _branch(_Conv(64)),
        "branch5x5": _branch(_Conv(48), _Conv(64, 5, 5)),
        "branch3x3dbl": _branch(_Conv(64), _Conv(96, 3, 3), _Conv(96, 3, 3)),
        "branch_pool": _branch(_Conv(pooled), pooling=_mean()),
    }


def _block_17(width: int) -> dict[str, _Branch]:
    """Figure 6 of the paper, with n = 7."""
    return {
        "branch1x1": _branch(_Conv(192)),
        "branch7x7": _branch(_Conv(width), _Conv(width, 1, 7), _Conv(192, 7, 1)),
        "branch7x7dbl": _branch(
            _Conv(width),
            _Conv(width, 7, 1),
            _Conv(width, 1, 7),
            _Conv(width, 7, 1),
            _Conv(192, 1, 7),
        ),
        "branch_pool": _branch(_Conv(192), pooling=_mean()),
    }


def _block_8(pooling: nn.Module) -> dict[str, _Branch]:
    """Figure 7 of the paper."""
    split = (_Conv(384, 1, 3), _Conv(384, 3, 1))
    return {
        "branch1x1": _branch(_Conv(320)),
        "branch3x3": _branch(_Conv(384), split),
        "branch3x3dbl": _branch(_Conv(448), _Conv(384, 3, 3), split),
        "branch_pool": _branch(_Conv(192), pooling=pooling),
    }


def _branch(*stages: _Conv | tuple[_Conv, _Conv], pooling: nn.Module | None = None) -> _Branch:
    return _Branch(tuple((stage,) if isinstance(stage, _Conv) else stage for stage in stages), pooling)


def _reducing(channels: int) -> _Conv:
    return _Conv(channels, 3, 3, stride=2, is_padded=False)


def _halving() -> nn.Module:
    return nn.MaxPool2d(3, stride=2)


def _mean() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


@dataclass(frozen=True, slots=True)
class InceptionMetadata:
    """Metadata to report with an FID or KID; ``sha256`` is that of the weights file."""

    sha256: str
    layer: str = "2048-d final average pooling"
    resize: str = "bilinear, TensorFlow 1 (align_corners=False without half-pixel centers, no antialiasing)"
    input: str = "299×299 RGB, (p - 128) / 128"


class InceptionFeatures(InceptionV3):
    """The network with the metadata to report with its metrics."""

    def __init__(self, metadata: InceptionMetadata) -> None:
        super().__init__()
        self.metadata = metadata


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> InceptionFeatures:
    """Read the weights without running any code from the file.

    Parameters
    ----------
    path
        Torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, under any name.

    Returns
    -------
    InceptionFeatures
        In float32 and evaluation mode; report its ``metadata`` with every metric.

    Raises
    ------
    OptionError
        If the file does not exist or cannot be read.
    ModelError
        If it is another file (by its SHA-256), or does not hold the network.
    """
    path, device = Path(path), one_device(device)
    if not path.is_file():
        raise OptionError(f"there is no file {path} with Inception weights; name torch-fidelity's {FILE_NAME}")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise OptionError(f"the Inception weights {path} cannot be read ({error!s:.80})") from error
    if found != SHA256:
        raise ModelError(
            f"{path} is damaged or is another file than torch-fidelity's {FILE_NAME}: its SHA-256 begins with "
            f"{found[:8]} instead of {SHA256[:8]}"
        )
    with torch.device("meta"):
        module = InceptionFeatures(InceptionMetadata(found))
    module.load_state_dict(_state(path, module), assign=True)
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks it
    return module.eval().requires_grad_(False)


def features(module: InceptionFeatures, images: RGBBatch, *, batch_size: int = BATCH) -> npt.NDArray[np.float32]:
    """Compute the features, (N, 2048), of images (N, H, W, 3) uint8 RGB of any size on the device of the network.

    Memory bound: 25 MB per image of a batch (measured), and the output.

    Raises
    ------
    DatasetError
        If the array is not such images.
    ModelError
        If a feature is not finite.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise DatasetError(f"Inception takes uint8 RGB images (N, H, W, 3), not {images.dtype} {images.shape}")
    output = np.empty((len(images), FEATURES), np.float32)
    device = module.fc.weight.device
    with torch.inference_mode(), _kernels(device):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(device)
            output[start : start + batch_size] = module(to_inception(pixels)).cpu().numpy()
    if not np.isfinite(output).all():
        raise ModelError(f"Inception returned features that are not finite on {device}; compute them on the CPU")
    return output


def to_inception(pixels: Tensor) -> Tensor:
    """Convert images (N, H, W, 3) uint8 to network input: (N, 3, 299, 299) float32 in [-1, 1), channels last."""
    resized = _stretched(_stretched(pixels, 2), 1)
    return resized.sub_(128).div_(128).permute(0, 3, 1, 2)


def _stretched(values: Tensor, axis: int) -> Tensor:
    """Resize an axis to 299 px as TensorFlow 1 did: sample i lies at i · size / 299, between its two neighbors.

    Positions are computed in float32, as there. If the size is already 299, the values do not change.
    """
    size = values.shape[axis]
    positions = np.arange(SIDE_PX, dtype=np.float32) * (np.float32(size) / np.float32(SIDE_PX))
    before = positions.astype(np.int64)
    after = np.minimum(before + 1, size - 1)
    weight = torch.from_numpy(positions - before.astype(np.float32)).to(values.device)
    weight = weight.view([-1 if one == axis else 1 for one in range(values.ndim)])
    low, high = (
        values.index_select(axis, torch.from_numpy(index).to(values.device)).to(torch.float32)
        for index in (before, after)
    )
    return high.sub_(low).mul_(weight).add_(low)


def _kernels(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Disable TF32 on a GPU (on for convolutions by default, and 10 bits short) and kernels chosen by timing."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


def _state(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """Read the weights in float32, with the names and shapes of the module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles; irrelevant if the file loads
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler lets any kind of exception out of a damaged file
        raise ModelError(
            f"{path} is not a file of plain PyTorch weights, or is damaged; files with other objects are not opened"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} does not hold Inception weights but a {type(loaded).__name__} of something else")
    expected = {name: value.shape for name, value in module.state_dict().items() if not name.endswith(COUNTER)}
    state = {str(name): value for name, value in loaded.items() if not str(name).endswith(COUNTER)}
    for verb, names in (("lacks", expected.keys() - state.keys()), ("has", state.keys() - expected.keys())):
        if names:
            raise ModelError(f"{path} does not hold Inception v3: it {verb} {min(names)!s:.80} ({len(names)} such)")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise ModelError(f"{path}: {name} has the shape {tuple(state[name].shape)} instead of {tuple(shape)}")
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith(COUNTER)}
    return {name: value.to(torch.float32) for name, value in state.items()} | counters
