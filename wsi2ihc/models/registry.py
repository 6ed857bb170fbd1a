"""Models by name or file, and their translators.

`load_model` finds a built-in model (``identity`` and ``counterstain``, which need no weights), a bundled file or
another file. `make_translator` prepares it for a device.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import ModelError, ModelNotFoundError
from ..geometry import RGBBatch, RGBImage
from .model_spec import PIXELWISE, SUFFIX, Dependency, GeneratorSpec, Translator, file_sha256, read_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

WHITE_LEVEL = 245.0  # gray level of unstained background, 235 to 250 on most scanners. Brighter pixels are not changed.

HEMATOXYLIN = (0.644211, 0.716556, 0.266844)
EOSIN = (0.092789, 0.954111, 0.283111)

_BLOCK_PX = 1 << 16  # pixels per block, so that its data (20 bytes per px) fits in the cache of a core


def identity(windows: RGBBatch) -> RGBBatch:
    """Return the images unchanged."""
    return windows


def counterstain(windows: RGBBatch) -> RGBBatch:
    """Remove eosin from H&E images (N, H, W, 3) uint8, pixel by pixel.

    Memory bound: 20 bytes per px of a block of 65,536, beside the output. OpenCV releases the GIL.
    """
    output = np.empty_like(windows)
    if windows.size == 0:
        return output
    width = windows.shape[2]
    rows = max(1, _BLOCK_PX // width)
    for image, result in zip(windows, output, strict=True):
        for top in range(0, len(image), rows):
            result[top : top + rows] = _remove_eosin(image[top : top + rows])
    return output


def _remove_eosin(image: RGBImage) -> RGBImage:
    factors, colors = _tables()
    red, green, blue = cv2.split(image)
    light = cv2.LUT(red, factors[0])
    light = cv2.multiply(light, cv2.LUT(green, factors[1]))
    light = cv2.multiply(light, cv2.LUT(blue, factors[2]), dtype=cv2.CV_8U)
    merged: RGBImage = np.asarray(cv2.merge([cv2.LUT(light, table) for table in colors]), np.uint8)
    return merged


@functools.cache
def _tables() -> tuple[tuple[npt.NDArray[np.float32], ...], tuple[npt.NDArray[np.uint8], ...]]:
    """Return, per channel, the factor of each level for green light, and the color of each green level."""
    stains = np.array([HEMATOXYLIN, EOSIN])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    unmixing = np.linalg.inv(np.vstack([stains, np.cross(*stains)]))
    hematoxylin = stains[0]
    green = hematoxylin[1]
    transmitted = np.maximum(np.arange(256), 1) / WHITE_LEVEL  # level 0, of infinite density, counts as 1
    factors = transmitted ** (green * unmixing[:, :1])
    factors[0] *= WHITE_LEVEL
    remaining = np.minimum(np.arange(256) / WHITE_LEVEL, 1.0)
    colors = np.rint(WHITE_LEVEL * remaining ** (hematoxylin[:, np.newaxis] / green))
    return tuple(factors.astype(np.float32)), tuple(colors.astype(np.uint8))


class PixelTranslator:
    """`Translator` for a pixelwise function."""

    halo_px = 0
    stride_px = 1
    multiple_px = 1
    is_exact = True

    def __init__(self, function: Callable[[RGBBatch], RGBBatch], bytes_per_px: float) -> None:
        self._function = function
        self.bytes_per_px = bytes_per_px

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        """Translate a batch of windows; cores have the size of the windows."""
        return self._function(windows)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that translates slides: a trained network, or a built-in pixelwise function."""

    name: str  # listed name, or the name of the file without suffix
    version: str  # name and number of a built-in, as in "counterstain 1"; SHA-256 of a model file
    stain: str  # virtual stain, as in "HER2"
    channel_name: str  # channel name of the output, which states that it is computed
    mpp: float | None  # resolution in µm per px; None for a built-in, which uses that of the slide
    license: str  # license of the weights; "" if unknown
    description: str  # one sentence for display
    spec: GeneratorSpec | None = None  # specification of a trained model, else None
    module: nn.Module | None = None  # network in evaluation mode; None for a built-in or a model without its weights
    # function of a built-in, from images (N, H, W, 3) uint8 to the same; else None
    pixelwise: Callable[[RGBBatch], RGBBatch] | None = None
    bytes_per_px: float = 0.0  # working memory of ``pixelwise``

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the model file; None for a built-in."""
        return None if self.spec is None else self.version

    @property
    def dependency(self) -> Dependency:
        """Receptive field, computed from the layers on each access."""
        if self.pixelwise is not None:
            return PIXELWISE
        from .receptive_field import dependency

        return dependency(_network(self))


@dataclass(frozen=True, slots=True)
class SlideStatistics:
    """A generator with normalization statistics of a slide."""

    generator: Model  # generator, which is now local
    # change of its mean output for the sample, in red, green and blue gray levels
    moved_levels: tuple[float, float, float]


def make_translator(
    generator: Model, device: str | torch.device = "auto", precision: str = "auto", *, exact: bool
) -> Translator:
    """Make a translator of a generator for one device and precision (`device.parse_devices`, `choose_precision`).

    ``exact`` gives cores with a halo, which are seamless; otherwise windows are blended, and the network pads them. A
    built-in model always runs on the CPU, and is always exact.

    Raises
    ------
    DeviceError
        If the device is missing, several are given, or it does not support the precision.
    ModelError
        If ``exact`` and the generator is not local.
    """
    if generator.pixelwise is not None:
        return PixelTranslator(generator.pixelwise, generator.bytes_per_px)
    from .device import choose_precision, one_device
    from .inference import TorchTranslator

    chosen = one_device(device)
    return TorchTranslator(
        _network(generator), chosen, choose_precision(precision, chosen), exact=exact, name=generator.name
    )


def with_slide_statistics(
    generator: Model, sample: Iterable[RGBBatch], device: str | torch.device = "cpu"
) -> SlideStatistics:
    """Freeze the normalization of a generator at the statistics of tissue; see `normalization.estimate_statistics`.

    The sample is batches of tissue (N, H, W, 3) uint8 at the resolution of the generator, held in memory together;
    about 30 images of 256 px suffice. A built-in model is returned unchanged.

    Raises
    ------
    ModelError
        If the sample is empty, or its statistics are not finite.
    DeviceError
        If the device is missing, or several are given.
    """
    if generator.pixelwise is not None:
        return SlideStatistics(generator, (0.0, 0.0, 0.0))
    from .device import one_device
    from .normalization import statistics_of_pixels

    estimated = statistics_of_pixels(_network(generator), sample, one_device(device))
    return SlideStatistics(replace(generator, module=estimated.module), estimated.moved_levels)


def statistics_to_bytes(estimated: SlideStatistics) -> bytes:
    """Serialize the statistics of a slide as a safetensors file."""
    from .normalization import to_bytes

    return to_bytes(_network(estimated.generator), estimated.moved_levels)


def statistics_from_bytes(generator: Model, content: bytes) -> SlideStatistics:
    """Restore a generator with statistics of `statistics_to_bytes`, bit by bit.

    Raises `ModelError` if they are damaged, or belong to another generator.
    """
    from .normalization import from_bytes

    stored = from_bytes(_network(generator), content)
    return SlideStatistics(replace(generator, module=stored.module), stored.moved_levels)


def _network(generator: Model) -> nn.Module:
    if generator.module is None:
        raise ModelError(f"the model {generator.name} has no weights; load it with load_model")
    return generator.module


DEFAULT_MODEL = "pan-ck-demo"
"""A demonstration on an epithelial marker of the colon, not HER2; see docs/models/pan-ck-demo/README.md."""

BUNDLED = Path(__file__).with_name("bundled")
"""Folder of the trained models of this package, each as ``name.safetensors``."""

_BUILT_IN = (
    Model(
        name="counterstain",
        version="counterstain 1",
        stain="hematoxylin",
        channel_name="counterstain (computed)",
        mpp=None,
        license="Apache-2.0",
        description="Takes the eosin out by color deconvolution: what an IHC-negative slide would look like.",
        pixelwise=counterstain,
        bytes_per_px=6.0,
    ),
    Model(
        name="identity",
        version="identity 1",
        stain="H&E",
        channel_name="H&E (copy)",
        mpp=None,
        license="Apache-2.0",
        description="Returns the slide unchanged, to test the pipeline.",
        pixelwise=identity,
        bytes_per_px=3.0,
    ),
)


def list_models() -> tuple[Model, ...]:
    """List the built-in and bundled models by name, without their networks."""
    bundled = map(describe_generator, BUNDLED.glob(f"*{SUFFIX}"))
    return tuple(sorted([*_BUILT_IN, *bundled], key=lambda model: model.name))


def describe_generator(name_or_path: str | Path) -> Model:
    """Describe a model without its network, and without torch; raises what `load_model` does.

    Its ``version`` is unique.
    """
    found = _find(name_or_path)
    if isinstance(found, Model):
        return found
    spec = read_spec(found)  # first, since it refuses other files
    return _described(found.stem, file_sha256(found), spec)


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> Model:
    """Load a model by name, or from a file of `save_checkpoint`.

    The default model is a demonstration on pan-cytokeratin, not HER2.

    Raises
    ------
    ModelNotFoundError
        If there is no such model or file; the message lists the models.
    ModelError
        If the file is not a usable model, or its weights make an ordinary image overflow.
    """
    found = _find(name_or_path)
    if isinstance(found, Model):
        return found
    from .inference import check_response
    from .model_file import load_checkpoint

    module, spec, sha256 = load_checkpoint(found)
    if found.parent != BUNDLED:
        check_response(module, found.name)
    return replace(_described(found.stem, sha256, spec), module=module)


def _find(name_or_path: str | Path) -> Model | Path:
    """Return a built-in model, or the path of an existing model file."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"a model is given by its name or file, not as a {type(name_or_path).__name__}")
    name = os.fspath(name_or_path)
    for model in _BUILT_IN:
        if name == model.name:
            return model
    path = BUNDLED / f"{name}{SUFFIX}" if Path(name).name == name else Path(name)
    if not _exists(path):
        path = Path(name)
    if not name or not _exists(path):
        names = ", ".join(model.name for model in list_models())
        raise ModelNotFoundError(f"there is no model or file {name!r:.200}; the models are {names}, or give a file")
    return path


def _exists(path: Path) -> bool:
    """Return whether a path exists; False if its name is too long for the system."""
    try:
        return path.exists()
    except OSError:
        return False


def _described(name: str, version: str, spec: GeneratorSpec) -> Model:
    """Make a model without its network from a specification."""
    kind = f"{'ResNet' if spec.architecture == 'resnet' else 'U-Net'} of depth {spec.depth}, width {spec.width}"
    summary = f"{kind}, {spec.norm} norm, trained at {spec.mpp:g} µm/px"
    return Model(
        name=name,
        version=version,
        stain=spec.stain,
        channel_name=f"virtual {spec.stain} (computed)",
        mpp=spec.mpp,
        license=spec.license,
        description=f"{spec.about} ({summary})" if spec.about else summary,
        spec=spec,
    )
