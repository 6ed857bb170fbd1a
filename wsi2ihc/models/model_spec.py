"""Specification of a model, without torch.

`GeneratorSpec` is the architecture and provenance in the header of a model file, which is read here within bounds.
`Dependency` is the receptive field of a network, `Translator` the protocol of a network on a device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import ModelError, ModelNotFoundError
from ..files import open_regular
from ..geometry import RGBBatch, RGBImage

Architecture = Literal["resnet", "unet"]
Norm = Literal["batch", "instance"]
Upsampling = Literal["transposed", "bilinear"]
Padding = Literal["reflect", "zero"]

DEPTHS: Mapping[Architecture, range] = {"resnet": range(1, 65), "unet": range(5, 11)}
"""Supported depths. The bounds prevent a damaged or hostile file from claiming a giant network."""

WIDTHS = range(1, 513)  # supported channels after the first layer
MPP_RANGE = (0.01, 100.0)  # plausible resolutions of training images, in µm per px

_NEW_FIELDS = (("padding", "reflect"), ("antialiasing", False))
"""Fields that versions before 0.2 do not support, and their default values."""

# bounds of the provenance in a file; trained models have about 5,000 characters in 3 levels
LARGEST_TRAINING_CHARACTERS, DEEPEST_TRAINING = 1 << 20, 20


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """Architecture and provenance of a trained generator.

    Raises `ModelError` if a value is impossible.
    """

    architecture: Architecture = "resnet"  # "resnet" or "unet"
    depth: int = 9  # residual blocks of a ResNet, or downsampling steps of a U-Net
    width: int = 64  # channels after the first layer
    norm: Norm = "batch"  # "batch" or "instance"
    dropout: bool = True  # whether dropout was used in training (never in translation)
    upsampling: Upsampling = "transposed"  # "transposed" convolutions, or "bilinear" (×2, then a convolution)
    padding: Padding = "reflect"  # padding in the residual blocks of a ResNet; "reflect" for a U-Net
    antialiasing: bool = False  # whether a ResNet resamples by filters instead of strides (CUT, ASP)
    mpp: float = 0.5  # µm per px of the training images
    stain: str = "IHC"  # virtual stain, as in "HER2" or "pan-CK"; part of the channel name of the output
    license: str = ""  # license of the weights; "" if unknown
    about: str = ""  # intended use in a sentence; may be empty
    # provenance as JSON values: data, recipe, steps, versions, source of an import
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("architecture", self.architecture, get_args(Architecture))
        _within("depth", self.depth, DEPTHS[self.architecture])
        _within("width", self.width, WIDTHS)
        _one_of("norm", self.norm, get_args(Norm))
        _one_of("upsampling", self.upsampling, get_args(Upsampling))
        if self.architecture == "unet" and self.upsampling != "transposed":
            raise ModelError("a U-Net doubles by transposed convolutions only; upsampling cannot be 'bilinear'")
        _one_of("padding", self.padding, get_args(Padding))
        if self.architecture == "unet" and self.padding != "reflect":
            raise ModelError("a U-Net has no residual blocks; padding cannot be 'zero'")
        for name in ("dropout", "antialiasing"):
            if not isinstance(getattr(self, name), bool):
                raise ModelError(f"a generator's {name} is true or false, not {getattr(self, name)!r:.60}")
        if self.antialiasing and (self.architecture == "unet" or self.upsampling != "transposed"):
            raise ModelError("antialiasing belongs to a ResNet, and replaces its upsampling")
        is_number = isinstance(self.mpp, int | float) and not isinstance(self.mpp, bool)
        if not is_number or not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            raise ModelError(f"a generator's mpp lies between {MPP_RANGE[0]} and {MPP_RANGE[1]}, not {self.mpp!r}")
        for name, most in (("stain", 200), ("license", 200), ("about", 500)):
            value = getattr(self, name)
            if not isinstance(value, str) or (value and not value.isprintable()) or len(value) > most:
                raise ModelError(f"a generator's {name} is a line of at most {most} characters, not {value!r:.60}")
        if not self.stain.strip():
            raise ModelError("a generator needs the name of its stain, as in 'HER2'")
        _check_training(self.training)

    def to_json(self) -> str:
        """Serialize all fields, without those that older versions do not support if they have their default."""
        values = {name: value for name, value in asdict(self).items() if (name, value) not in _NEW_FIELDS}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GeneratorSpec:
        """Parse the output of `to_json`.

        Raises `ModelError` if it is not a JSON object, has missing or unknown fields, or an invalid value.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the generator's description is not JSON ({error!s:.80})") from error
        if not isinstance(values, dict):
            raise ModelError("the generator's description is not a JSON object")
        if "licence" in values and "license" not in values:  # the name in files of versions before 0.2
            values["license"] = values.pop("licence")
        names = {one.name for one in fields(cls)}
        for name, default in (("about", ""), *_NEW_FIELDS):  # missing in earlier files
            values.setdefault(name, default)
        for kind, odd in (("lacks", names - values.keys()), ("has the unknown", values.keys() - names)):
            if odd:
                raise ModelError(f"the generator's description {kind} {', '.join(sorted(odd))!s:.120}")
        return cls(**values)


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"a generator's {name} is one of {', '.join(choices)}, not {value!r:.60}")


def _within(name: str, value: object, choices: range) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value not in choices:
        raise ModelError(f"a generator's {name} lies between {choices[0]} and {choices[-1]}, not {value!r:.60}")


def _check_training(training: object) -> None:
    if not isinstance(training, Mapping):
        raise ModelError("a generator's training provenance is a mapping of names to JSON values")
    try:
        text = json.dumps(dict(training), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"a generator's training provenance holds what JSON cannot ({error!s:.80})") from error
    if len(text) > LARGEST_TRAINING_CHARACTERS or _nesting_depth(training) > DEEPEST_TRAINING:
        raise ModelError(
            f"a generator's training provenance holds more than {LARGEST_TRAINING_CHARACTERS} characters, or nests "
            f"deeper than {DEEPEST_TRAINING}"
        )


def _nesting_depth(value: object) -> int:
    if isinstance(value, Mapping):
        value = list(value.values())
    return 1 + max(map(_nesting_depth, value), default=0) if isinstance(value, list | tuple) else 0


FORMAT = "wsi2ihc-generator"
VERSION = 1
SUFFIX = ".safetensors"

LARGEST_HEADER_BYTES = 8 << 20  # the safetensors library allows 100 MB; this program writes about 30 kB
LARGEST_BYTES = 4 << 30  # published generators take 45 MB, pix2pixHD's 730 MB

_WEB_PAGE = "a web page that was saved in place of the file; download it again, in a browser if necessary"
SIGNATURES = (
    *((start, "a TIFF file, not model weights") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (b"\x89PNG", "a PNG file, not model weights"),
    (b"\xff\xd8\xff", "a JPEG file, not model weights"),
    *((start, _WEB_PAGE) for start in (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML")),
)
"""First bytes of files that are mistaken for models, and what they are."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def read_spec(path: Path) -> GeneratorSpec:
    """Read the specification of a model file."""
    with open_checkpoint(path, "numpy") as file:
        return spec_of(file, path)


def open_checkpoint(path: Path, framework: str) -> Any:
    """Open a model file as a context manager; tensors have the type of ``framework`` ("numpy" or "pt").

    The safetensors library checks that tensors neither overlap nor leave gaps, and lie inside the file, so that a file
    cannot claim more memory than its size.
    """
    with open_model_file(path) as file:
        start = file.read(9)
    try:
        # A safetensors file starts with the length of its header in 8 bytes, which can resemble a pickle, and "{".
        if start.startswith((_ZIP, _PICKLE)) and not start.endswith(b"{"):
            raise ModelError(
                f"{path.name} is a PyTorch checkpoint (.pth); convert it with "
                f"'wsi2ihc models import {path.name} {path.stem}{SUFFIX} --mpp MPP'"
            )
        for signature, what in SIGNATURES:
            if start.startswith(signature) and not start.endswith(b"{"):
                raise ModelError(f"{path.name} is {what}")
        check_header(start, path)
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ModelError(f"{path.name} is not a safetensors file, or is incomplete ({error!s:.100})") from error
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror or error})") from error


def check_header(start: bytes, path: Path) -> None:
    """Refuse a safetensors file with a huge header, which could list millions of empty tensors."""
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length > LARGEST_HEADER_BYTES:
        raise ModelError(f"{path.name} is damaged: its header claims {length} bytes")


def open_model_file(path: Path, largest_bytes: int = LARGEST_BYTES) -> BufferedReader:
    """Open a regular file of plausible size; raises `ModelNotFoundError` if it is missing, otherwise `ModelError`."""
    try:
        return open_regular(path, largest_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFoundError(f"there is no model file {path}") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder, not a model file; name the file in it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"the model file {path!s:.200} cannot be opened: {reason}") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a model file, in hexadecimal."""
    with open_model_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spec_of(file: Any, path: Path) -> GeneratorSpec:
    """Check the format version of an open model file, and return its specification."""
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or "spec" not in metadata:
        raise ModelError(
            f"{path.name} has no specification of its generator; if its weights are those of a pix2pix generator, "
            f"convert it with 'wsi2ihc models import {path.name} NEW{SUFFIX} --mpp MPP'"
        )
    version = str(metadata.get("version", ""))
    if version != str(VERSION):
        raise ModelError(
            f"{path.name} has format version {version!r:.20}, and this program reads version {VERSION}; "
            "a newer wsi2ihc may read it"
        )
    try:
        return GeneratorSpec.from_json(metadata["spec"])
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Dependency:
    """Receptive field of a network, along the wider axis."""

    radius_px: int  # largest distance of an input pixel that affects an output pixel
    stride_px: int  # shifting the input by a multiple of this shifts the output equally; other shifts change it
    # extent of the receptive field before and after output positions 0, 1, …, stride_px - 1, in px
    per_phase: tuple[tuple[int, int], ...]
    # why the network is not a local function of its input, one sentence each; empty if it is
    reasons: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether each output pixel depends on its receptive field only."""
        return not self.reasons


PIXELWISE = Dependency(radius_px=0, stride_px=1, per_phase=((0, 0),))  # receptive field of a pixelwise function


class Translator(Protocol):
    """A generator on one device, in one precision: batches of windows in, batches of cores out."""

    @property
    def halo_px(self) -> int:
        """Context on each side of a window, which the output lacks.

        At least the radius of the receptive field if the translation is exact; 0 for blended windows.
        """
        ...

    @property
    def stride_px(self) -> int:
        """Windows start on multiples of this, counted from the origin of the working grid."""
        ...

    @property
    def multiple_px(self) -> int:
        """Sides of windows are multiples of this: the stride, or more if bit-equal pixels require it."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether output pixels are independent of the window."""
        ...

    @property
    def bytes_per_px(self) -> float:
        """Peak working memory per px of a window, beyond the weights."""
        ...

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        """Translate windows (N, H, W, 3) uint8 into cores (N, H - 2·halo_px, W - 2·halo_px, 3) uint8.

        Called from one thread at a time. The result may be the argument itself or a view of it.

        Raises `ModelError` if the output is not finite, and `DeviceMemoryError` if a window does not fit on the device.
        """
        ...


_MIN_RANGE = 1.0
"""Gray levels between the brightest and darkest pixel of a channel; rounding of a constant image yields less."""
_MAX_SATURATED = 0.98  # largest fraction of values at 0 or 255


def describe_fault(output: RGBImage) -> str:
    """Describe the fault of an output for an image with structure: one color, or only 0 and 255; "" if neither."""
    values = output.reshape(-1, 3)
    if (np.ptp(values, axis=0) <= _MIN_RANGE).all():
        return f"a single color, {tuple(values[0].tolist())}"
    if np.isin(values, (0, 255)).mean() > _MAX_SATURATED:
        return "nothing but 0 and 255"
    return ""
