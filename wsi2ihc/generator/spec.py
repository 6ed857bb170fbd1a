"""What a checkpoint says of its generator: the architecture, and where the weights come from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ..errors import ModelError

Architecture = Literal["resnet", "unet"]
Norm = Literal["batch", "instance"]
Upsampling = Literal["transposed", "bilinear"]
Padding = Literal["reflect", "zero"]

DEPTHS: Mapping[Architecture, range] = {"resnet": range(1, 65), "unet": range(5, 11)}
"""Depths that a network can have. The bounds keep a damaged or hostile file from claiming a giant network."""

WIDTHS = range(1, 513)
"""Channels that a network can have after its first layer."""

MPP_RANGE = (0.01, 100.0)
"""µm per px that a generator can have been trained at; anything else is a slip of the pen."""

_NEW_FIELDS = (("padding", "reflect"), ("antialiasing", False))
"""Fields that versions before 0.2 do not know, and their usual values."""

LARGEST_TRAINING_CHARACTERS = 1 << 20
DEEPEST_TRAINING = 20
"""Bounds of the provenance that a file may carry; trained models have about 5,000 characters in 3 levels."""


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """The architecture and the provenance of a trained generator.

    architecture:  "resnet" or "unet"
    depth:         residual blocks of a ResNet, or halvings of a U-Net
    width:         channels after the first layer
    norm:          "batch" or "instance"
    dropout:       whether dropout was on in training (it is never on in translation)
    upsampling:    "transposed" convolutions, or "bilinear" (×2, then a convolution)
    padding:       what the residual blocks of a ResNet pad with; "reflect" for a U-Net
    antialiasing:  whether a ResNet halves and doubles by filters instead of by strides (CUT, ASP)
    mpp:           µm per px of the images that it was trained on
    stain:         what it makes, as in "HER2" or "pan-CK"; goes into the output's channel name
    licence:       of the weights, as their maker states it; "" where that is unknown
    about:         what it is for, and what not, in a sentence for those who use it; "" if its maker says nothing
    training:      provenance as JSON values: data, recipe, steps, versions, where imported from, …

    Raises
    ------
    ModelError
        If a value is impossible.
    """

    architecture: Architecture = "resnet"
    depth: int = 9
    width: int = 64
    norm: Norm = "batch"
    dropout: bool = True
    upsampling: Upsampling = "transposed"
    padding: Padding = "reflect"
    antialiasing: bool = False
    mpp: float = 0.5
    stain: str = "IHC"
    licence: str = ""
    about: str = ""
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
        if isinstance(self.mpp, bool) or not isinstance(self.mpp, int | float) or not _is_between(self.mpp, MPP_RANGE):
            raise ModelError(f"a generator's mpp lies between {MPP_RANGE[0]} and {MPP_RANGE[1]}, not {self.mpp!r}")
        for name, most in (("stain", 200), ("licence", 200), ("about", 500)):
            value = getattr(self, name)
            if not isinstance(value, str) or (value and not value.isprintable()) or len(value) > most:
                raise ModelError(f"a generator's {name} is a line of at most {most} characters, not {value!r:.60}")
        if not self.stain.strip():
            raise ModelError("a generator needs the name of its stain, as in 'HER2'")
        _check_training(self.training)

    def to_json(self) -> str:
        """All fields as one JSON object, without those that older versions do not know if their value is the usual."""
        values = {name: value for name, value in asdict(self).items() if (name, value) not in _NEW_FIELDS}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GeneratorSpec:
        """Read what `to_json` wrote.

        Raises
        ------
        ModelError
            If it is no JSON object, has fields that are missing or unknown, or an impossible value.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the generator's description is no JSON ({error!s:.80})") from error
        if not isinstance(values, dict):
            raise ModelError("the generator's description is no JSON object")
        names = {one.name for one in fields(cls)}
        for name, usual in (("about", ""), *_NEW_FIELDS):  # which earlier files lack
            values.setdefault(name, usual)
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


def _is_between(value: float, bounds: tuple[float, float]) -> bool:
    return math.isfinite(value) and bounds[0] <= value <= bounds[1]


def _check_training(training: object) -> None:
    if not isinstance(training, Mapping):
        raise ModelError("a generator's training provenance is a mapping of names to JSON values")
    try:
        text = json.dumps(dict(training), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"a generator's training provenance holds what JSON cannot ({error!s:.80})") from error
    if len(text) > LARGEST_TRAINING_CHARACTERS or _depth(training) > DEEPEST_TRAINING:
        raise ModelError(
            f"a generator's training provenance holds more than {LARGEST_TRAINING_CHARACTERS} characters, or nests "
            f"deeper than {DEEPEST_TRAINING}"
        )


def _depth(value: object) -> int:
    """How deep a JSON value nests, which json has already walked through."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list | tuple) else 0
