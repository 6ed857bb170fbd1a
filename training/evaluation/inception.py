"""Features of images from the Inception v3 network that FID and KID are defined by, with weights that the user names.

Heusel et al. (NeurIPS 2017) defined the FID by the network that was released for TensorFlow on 2015-12-05. Figures can
be compared only if the weights, the resize and the scale of pixels are as they were there. So one file of weights is
taken, told by its SHA-256: torch-fidelity's, which is also pytorch-fid's. It is never fetched.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wsi2ihc.arrays import RGBBatch
from wsi2ihc.errors import DatasetError, ModelError, OptionError
from wsi2ihc.generator.checkpoint import COUNTER
from wsi2ihc.generator.device import one_device
from wsi2ihc.generator.header import file_sha256

from .inception_network import FEATURES, InceptionV3

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

SIDE_PX = 299
"""Of the square that the network takes."""

BATCH = 8
"""Images done at a time."""


@dataclass(frozen=True, slots=True)
class InceptionFacts:
    """What has to stand beside an FID or KID.

    sha256:  of the file of weights
    layer:   whose values are the features
    resize:  how images are brought to the network's size
    input:   what the network takes
    """

    sha256: str
    layer: str = "2048-d final average pooling"
    resize: str = "bilinear, TensorFlow 1 (align_corners=False without half-pixel centres, no antialiasing)"
    input: str = "299×299 RGB, (p - 128) / 128"


class InceptionFeatures(InceptionV3):
    """The network, and what to report with its figures."""

    def __init__(self, facts: InceptionFacts) -> None:
        super().__init__()
        self.facts = facts


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> InceptionFeatures:
    """Read the weights, without running any code that the file may hold.

    Parameters
    ----------
    path
        of torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, under any name
    device
        where the network shall compute

    Returns
    -------
    The network in float32 and evaluation mode; its ``facts`` are to be reported with every figure.

    Raises
    ------
    OptionError
        If there is no such file, or it cannot be read.
    ModelError
        If it is another file (by its SHA-256), or does not hold the network.
    DeviceError
        If there is no such device.
    """
    path, settled = Path(path), one_device(device)
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
        module = InceptionFeatures(InceptionFacts(found))
    module.load_state_dict(_state(path, module), assign=True)
    module.to(device=settled, memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks it
    return module.eval().requires_grad_(False)


def features(module: InceptionFeatures, images: RGBBatch, *, batch_size: int = BATCH) -> npt.NDArray[np.float32]:
    """The features of images, computed on the device that holds the network.

    Memory bound: 25 MB for each image of a batch (measured), and the answer.

    Parameters
    ----------
    images
        (N, H, W, 3) uint8 RGB, of any size
    batch_size
        images done at a time

    Returns
    -------
    (N, 2048) float32

    Raises
    ------
    DatasetError
        If these are no such images.
    ModelError
        If a feature is not finite.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise DatasetError(f"Inception takes uint8 RGB images (N, H, W, 3), not {images.dtype} {images.shape}")
    answer = np.empty((len(images), FEATURES), np.float32)
    device = module.fc.weight.device
    with torch.inference_mode(), _kernels(device):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(device)
            answer[start : start + batch_size] = module(to_inception(pixels)).cpu().numpy()
    if not np.isfinite(answer).all():
        raise ModelError(f"Inception gave features that are not finite on {device}; compute them on the CPU")
    return answer


def to_inception(pixels: Tensor) -> Tensor:
    """Images (N, H, W, 3) uint8 to what the network takes: (N, 3, 299, 299) float32 in [-1, 1), channels last."""
    resized = _stretched(_stretched(pixels, 2), 1)
    return resized.sub_(128).div_(128).permute(0, 3, 1, 2)


def _stretched(values: Tensor, axis: int) -> Tensor:
    """Bring an axis to 299 as TensorFlow 1 did: place i looks at i · size / 299, between its two neighbours.

    The places are computed in float32, as there. Where the size is 299 already, the values stay as they are.
    """
    size = values.shape[axis]
    places = np.arange(SIDE_PX, dtype=np.float32) * (np.float32(size) / np.float32(SIDE_PX))
    before = places.astype(np.int64)
    after = np.minimum(before + 1, size - 1)
    share = torch.from_numpy(places - before.astype(np.float32)).to(values.device)
    share = share.view([-1 if one == axis else 1 for one in range(values.ndim)])
    low, high = (
        values.index_select(axis, torch.from_numpy(index).to(values.device)).to(torch.float32)
        for index in (before, after)
    )
    return high.sub_(low).mul_(share).add_(low)


def _kernels(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a GPU: no TF32 (on for convolutions by default, and 10 bits short), and no kernels found by trial."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


def _state(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The file's weights in float32, their names and shapes being those of the module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickles; what matters is whether it loads
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler lets any kind of exception out of a damaged file
        raise ModelError(
            f"{path} is no file of plain PyTorch weights, or is damaged; a file that holds other objects is not opened"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} holds no Inception weights, but a {type(loaded).__name__} of something else")
    expected = {name: value.shape for name, value in module.state_dict().items() if not name.endswith(COUNTER)}
    state = {str(name): value for name, value in loaded.items() if not str(name).endswith(COUNTER)}
    for what, odd in (("lacks", expected.keys() - state.keys()), ("has", state.keys() - expected.keys())):
        if odd:
            raise ModelError(f"{path} holds no Inception v3: it {what} {min(odd)!s:.80} ({len(odd)} such)")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise ModelError(f"{path}: {name} has the shape {tuple(state[name].shape)} instead of {tuple(shape)}")
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith(COUNTER)}
    return {name: value.to(torch.float32) for name, value in state.items()} | counters
