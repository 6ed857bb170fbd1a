"""Training options, recipes and presets."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wsi2ihc.errors import OptionError
from wsi2ihc.files import read_regular
from wsi2ihc.models.model_spec import MPP_RANGE, Architecture, GeneratorSpec, Norm, Upsampling
from wsi2ihc.text import MOST_SEED, check_bounds, flag, option

from .data import Augmentation, Order
from .data.stain_jitter import STRONGEST

Preset = Literal["none", "bci"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "none": {},
    "bci": {
        "mpp": 0.46,
        "stain": "HER2",
        "data_name": "BCI",
        "data_license": "BCI: non-commercial research only",
        # the file names contain no patient or slide, so there is no better split; every run warns about it
        "split_by_patch": True,
    },
}
"""Values of `TrainOptions` that fill in what neither the user nor the data state; they never replace anything."""


Recipe = Literal["pix2pix", "pyramid", "variance"]
VarianceKind = Literal["unbiased", "biased"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
BestBy = Literal["stain_r_blocks", "stain_r", "psnr", "ssim"]

RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "pix2pix": {"architecture": "unet", "octaves": 1, "l1_weight": 100.0, "variance_weight": 0.0},
    "pyramid": {"architecture": "resnet", "octaves": 4, "l1_weight": 25.0, "variance_weight": 0.0},
    "variance": {"architecture": "resnet", "octaves": 4, "l1_weight": 25.0, "variance_weight": 100.0},
}
"""Recipes of the study. pix2pix uses the U-Net-256 of its authors; ``architecture = "resnet"`` compares only the
losses.

The study does not state λ, the weight of the variance term. Of 1, 10 and 100, 100 gave the best PSNR, SSIM and stain
correlation per pixel with both of two seeds; 300 gave better PSNR with one, and the worst with the other
(benchmarks/RESULTS.md).
"""

DEFAULT_DEPTHS: Mapping[Architecture, int] = {"resnet": 9, "unet": 8}

MINIMUM_CROP_PX = 32
"""The discriminator halves the size three times and then loses 2 px: with smaller crops its output is empty, or its
batch norm has almost no values.
"""

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "depth": (0, 64), "ngf": (1, 1024), "ndf": (1, 1024), "l1_weight": (0, 10**9), "octaves": (1, 64),
    "variance_weight": (0, 10**9), "epochs": (1, 10**6), "batch_size": (1, 65_536), "seed": (0, MOST_SEED),
    "crop_size": (0, 16_384), "stain_jitter": (0, STRONGEST), "overfit": (0, 10**6), "validate_every": (1, 10**6),
    "validation_patches": (0, 10**9), "checkpoint_every": (1, 10**9), "log_every": (1, 10**6), "samples": (0, 1000),
    "processes": (1, 1024), "nodes": (1, 10_000), "workers": (-1, 256),
}  # fmt: skip
"""Far larger than useful: values beyond are typing errors, and would exhaust memory or never end."""

LARGEST_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of `train`; the text of each field is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is invalid, or contradicts another.
    """

    recipe: Recipe = option("variance", "Recipe of the study, which sets losses and network.")
    # generator and discriminator
    architecture: Architecture = option("resnet", "Generator: a ResNet, or pix2pix's U-Net.")
    depth: int = option(0, "Residual blocks of the ResNet, or downsampling steps of the U-Net (0: 9 and 8).")
    ngf: int = option(64, "Channels of the generator after its first layer.")
    ndf: int = option(64, "Channels of the discriminator after its first layer.")
    norm: Norm = option("batch", "Normalization of the generator. Only batch norm allows exact tiling.")
    dropout: bool = option(True, "Dropout of 0.5 in the generator during training.")
    upsampling: Upsampling = option(
        "transposed", "Upsampling of the ResNet: as published, or without checkerboard artifacts."
    )
    # losses
    l1_weight: float = option(25.0, "Weight of the L1 loss at each octave.")
    octaves: int = option(4, "Number of scales of the L1 loss, each half of the previous one (1: plain L1).")
    variance_weight: float = option(100.0, "Weight λ of the variance loss (0: none).")
    variance_kind: VarianceKind = option("unbiased", "Variance with divisor N-1 or N.")
    # optimization
    epochs: int = option(100, "Number of epochs: half at a constant learning rate, half decaying.")
    learning_rate: float = option(2e-4, "Initial learning rate of Adam, for both networks.")
    beta1: float = option(0.5, "β1 of Adam.")
    beta2: float = option(0.999, "β2 of Adam.")
    ema_decay: float = option(
        0.0, "Decay per step of a moving average of the generator's weights, which becomes the model (0: none; 0.999 "
        "averages over some 1000 steps)."
    )  # fmt: skip
    batch_size: int = option(8, "Images per step, over all processes.")
    seed: int = option(0, "Random seed.")
    # data
    crop_size: int = option(256, "Side of the random crops in px.")
    augmentation: Augmentation = option(
        "dihedral", "Augmentation of crops: flips and right-angle rotations, horizontal flips as in the study, or none."
    )
    stain_jitter: float = option(
        0.0,
        "Stain augmentation of the H&E: amounts change by factors of up to exp(VALUE), and hues (0: none; try 0.3).",
    )
    order: Order = option(
        "AB", "Position of the H&E: AB if it is the left half of side-by-side images, or in folder A."
    )
    group_by: str | None = option(
        None,
        "Groups that must not be split: a regular expression with one named group for the file names, or a CSV file.",
    )
    split_by_patch: bool | None = option(None, "Split validation by patch if no groups are known (causes leakage).")
    validation_share: float = option(
        0.1, "Fraction of training patches used for validation, if the data has no validation split."
    )
    overfit: int = option(0, "Sanity check: train and validate on the same N patches (0: off).")
    # metadata of the model; taken from the data, then from the preset, if not given
    preset: Preset = option("none", "Public dataset whose metadata is used where neither options nor data state it.")
    mpp: float | None = option(None, "µm/px of the patches (default: from the data).")
    stain: str | None = option(None, "Name of the stain, such as HER2 (default: from the data).")
    data_name: str | None = option(None, "Name of the dataset (default: from the data, or its folder).")
    about: str = option(
        "", "Intended use of the model and its limits: a sentence shown to its users.", affects_result=False
    )
    data_license: str | None = option(None, "License of the data, stored in the model (default: from the data).")
    # the run
    validate_every: int = option(1, "Epochs between validations.")
    validation_patches: int = option(256, "Maximum number of validation patches, a fixed sample (0: all).")
    best_by: BestBy = option("stain_r_blocks", "Validation metric that selects the best epoch.")
    checkpoint_every: int = option(
        500, "Steps between checkpoints, in addition to those after each epoch.", affects_result=False
    )
    log_every: int = option(20, "Steps that are averaged in a row of steps.csv.", affects_result=False)
    samples: int = option(4, "Validation patches in the sample image of every epoch.", affects_result=False)
    tensorboard: bool = option(True, "Also write TensorBoard events.", affects_result=False)
    # the hardware
    device: str = option("auto", "auto, cpu, cuda, cuda:0,1 or mps.", affects_result=False)
    processes: int = option(1, "Training processes on the CPU (GPUs: one each).", affects_result=False)
    nodes: int = option(1, "Number of machines, if no launcher states it.", affects_result=False)
    precision: Precision = option("auto", "Number format of the networks; auto: the fastest that the device supports.")
    workers: int = option(
        -1, "Processes that decode patches (-1: depends on the number of cores).", affects_result=False
    )
    compile: bool = option(False, "Compile the networks with torch.compile.", affects_result=False)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainOptions).items():
            _check_type(name, getattr(self, name), hint)
        check_bounds(self, _BOUNDS)
        for name in ("learning_rate", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"{flag(name)} must lie between 0 and 1, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{flag(name)} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.mpp is not None and not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            raise OptionError(f"--mpp must lie between {MPP_RANGE[0]} and {MPP_RANGE[1]} µm/px, not {self.mpp}")
        self.spec()  # checks the architecture
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.variance_weight > 0 and self.batch_size < 2:
            raise OptionError("the variance term needs at least 2 images per step; raise --batch-size, or set "
                              "--variance-weight 0")  # fmt: skip
        if self.crop_size < MINIMUM_CROP_PX:
            raise OptionError(f"--crop-size {self.crop_size} is too small: the discriminator needs "
                              f"{MINIMUM_CROP_PX} px")  # fmt: skip
        if self.crop_size % self.size_multiple:
            lower = "; or lower --depth" if self.architecture == "unet" else ""
            raise OptionError(f"--crop-size {self.crop_size} is not a multiple of {self.size_multiple}, which "
                              f"{self.network_name} needs{lower}")  # fmt: skip
        if self.octaves > 8 or self.crop_size < 2**self.octaves:
            raise OptionError(f"--octaves {self.octaves} is too large: the maximum is 8, and for crops of "
                              f"{self.crop_size} px {self.crop_size.bit_length() - 1}")  # fmt: skip
        if self.group_by is not None and self.split_by_patch:
            raise OptionError("--group-by and --split-by-patch contradict each other; omit one of them")

    @property
    def network_depth(self) -> int:
        """Residual blocks or downsampling steps, with the default filled in."""
        return self.depth or DEFAULT_DEPTHS[self.architecture]

    @property
    def network_name(self) -> str:
        """Name such as "ResNet-9" or "U-Net-256"."""
        return f"U-Net-{2**self.network_depth}" if self.architecture == "unet" else f"ResNet-{self.network_depth}"

    @property
    def size_multiple(self) -> int:
        """Number of px of which the sides of the generator's input must be multiples."""
        return 2**self.network_depth if self.architecture == "unet" else 4

    def spec(self, **provenance: Any) -> GeneratorSpec:
        """Return the description of the generator; a `ModelError` if there is no such network."""
        return GeneratorSpec(
            architecture=self.architecture, depth=self.network_depth, width=self.ngf, norm=self.norm,
            dropout=self.dropout, upsampling=self.upsampling, **provenance,
        )  # fmt: skip


def resolve_options(explicit: Mapping[str, Any] | None = None, *, config: Path | None = None) -> TrainOptions:
    """Merge options; earlier sources in this list take precedence.

    ``explicit`` (the command line), the file ``config``, the defaults with the recipe "variance". Metadata that none of
    these states is taken from the dataset, then from the preset (`resolve_metadata`). Stating a recipe sets all fields
    of that recipe at this place: so ``--recipe pyramid`` turns the configuration of a run with another recipe into that
    of a pyramid run.

    Raises
    ------
    OptionError
        If the file cannot be read or has an unknown key, or a value is invalid.
    """
    layers: list[Mapping[str, Any]] = [{"recipe": "variance"}]
    if config is not None:
        layers.append(read_config(config))
    layers.append(explicit or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        if "recipe" in layer:
            if layer["recipe"] not in RECIPES:
                raise OptionError(f"there is no recipe {layer['recipe']!r:.40}; known are {', '.join(RECIPES)}")
            merged.update(RECIPES[layer["recipe"]])
        if "group_by" in layer:  # groups make a split by patch from another source obsolete
            merged["split_by_patch"] = None
        merged.update(layer)
    return TrainOptions(**merged)


def read_config(path: Path) -> dict[str, Any]:
    """Read the options that a configuration file states."""
    try:
        values = tomllib.loads(read_regular(path, LARGEST_CONFIG_BYTES).decode("utf-8"))
    except OSError as error:
        raise OptionError(f"the configuration {path} cannot be read ({error.strerror})") from error
    # other causes than TOML errors: text that is not UTF-8, numbers of thousands of digits, arrays nested too deeply
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the configuration {path} is not TOML ({error!s:.120})") from error
    hints = get_type_hints(TrainOptions)
    for name, value in values.items():
        if isinstance(value, dict):
            raise OptionError(f"the configuration {path} has a table [{name}]; all options must be at the top level")
        if name not in hints:
            similar = difflib.get_close_matches(name, hints, 1, 0.75)
            hint = f"; did you mean {similar[0]}?" if similar else "; wsi2ihc train --help lists them"
            raise OptionError(f"the configuration {path} has the unknown option {name!r}{hint}")
        _check_type(name, value, hints[name], f"the configuration {path}: ")
    return values


def config_text(options: TrainOptions) -> str:
    """Return a configuration file with these options, without those that are None."""
    values = dataclasses.asdict(options)
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def differences(before: TrainOptions, now: TrainOptions) -> list[str]:
    """Return how two configurations differ in options that affect the result, one readable line each."""
    found = []
    for one in dataclasses.fields(TrainOptions):
        old, new = getattr(before, one.name), getattr(now, one.name)
        if one.metadata.get("affects_result", True) and old != new:
            found.append(f"{flag(one.name)} {old} -> {new}")
    return found


def _toml(value: Any) -> str:
    # JSON strings, numbers and booleans are valid TOML, except that JSON does not escape DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_type(name: str, value: Any, hint: Any, where: str = "") -> None:
    """Check the type of a value from TOML or a caller."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise OptionError(f"{where}{flag(name)} is one of {', '.join(get_args(hint))}, not {value!r:.40}")
        return
    kinds = get_args(hint) or (hint,)
    fits = any(isinstance(value, kind) and (kind is bool) == isinstance(value, bool) for kind in kinds)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        fits = True
    if not fits:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise OptionError(f"{where}{flag(name)} is {wanted[kinds[0]]}, not {value!r:.40}")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise OptionError(f"{where}{flag(name)} is a finite number, not {value}")
