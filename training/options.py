# ruff: noqa: RUF009 (`_option` only makes a field)
"""How to train one generator: one configuration, of which the study's three recipes are presets.

A configuration is flat. Its fields are those of the command line, and the keys of its TOML file. What is not said
comes from the recipe, and what the recipe does not say from the defaults here, which are the study's hyper-parameters
(Rehmat et al. 2025, section 4; pyramid pix2pix: Liu et al. 2022), but for one: crops are turned and mirrored in all
eight ways, where the study flips them left to right (``augmentation = "hflip"``). Tissue has no upright.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wsi2ihc.errors import OptionError
from wsi2ihc.files import read_regular
from wsi2ihc.generator.spec import MPP_RANGE, Architecture, GeneratorSpec, Norm, Upsampling
from wsi2ihc.notation import MOST_SEED, check_bounds, flag

from .data import Augmentation, Order
from .data.stain_jitter import STRONGEST
from .presets import Preset

Recipe = Literal["pix2pix", "pyramid", "variance"]
VarianceKind = Literal["unbiased", "biased"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
BestBy = Literal["stain_r_blocks", "stain_r", "psnr", "ssim"]

RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "pix2pix": {"architecture": "unet", "octaves": 1, "l1_weight": 100.0, "variance_weight": 0.0},
    "pyramid": {"architecture": "resnet", "octaves": 4, "l1_weight": 25.0, "variance_weight": 0.0},
    "variance": {"architecture": "resnet", "octaves": 4, "l1_weight": 25.0, "variance_weight": 100.0},
}
"""The study's recipes. pix2pix has the U-Net-256 of its authors; ``architecture = "resnet"`` compares losses alone.

The study does not state λ, the weight of the variance term. Of 1, 10 and 100, 100 gave the best PSNR, SSIM and stain
correlation per pixel on both of two seeds; 300 did better still in PSNR on one, and worst of all on the other
(benchmarks/RESULTS.md).
"""

DEFAULT_DEPTHS: Mapping[Architecture, int] = {"resnet": 9, "unet": 8}

MINIMUM_CROP_PX = 32
"""The discriminator halves three times and then loses 2 px: below this its answer is empty, or its batch norm has
next to nothing to normalise."""

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "depth": (0, 64), "ngf": (1, 1024), "ndf": (1, 1024), "l1_weight": (0, 10**9), "octaves": (1, 64),
    "variance_weight": (0, 10**9), "epochs": (1, 10**6), "batch_size": (1, 65_536), "seed": (0, MOST_SEED),
    "crop_size": (0, 16_384), "stain_jitter": (0, STRONGEST), "overfit": (0, 10**6), "validate_every": (1, 10**6),
    "validation_patches": (0, 10**9), "checkpoint_every": (1, 10**9), "log_every": (1, 10**6), "pictures": (0, 1000),
    "processes": (1, 1024), "nodes": (1, 10_000), "workers": (-1, 256),
}  # fmt: skip
"""Far more than anybody needs, and so slips of the keyboard: they would end in a lack of memory, or never."""


def _option(default: Any, text: str, *, affects_result: bool = True) -> Any:
    return field(default=default, metadata={"help": text, "affects_result": affects_result})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of `train`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is impossible, or contradicts another.
    """

    recipe: Recipe = _option("variance", "The study's method whose losses and network are taken.")
    # the generator and its opponent
    architecture: Architecture = _option("resnet", "Generator: a ResNet, or pix2pix's U-Net.")
    depth: int = _option(0, "Residual blocks of the ResNet, halvings of the U-Net (0: 9, and 8).")
    ngf: int = _option(64, "Channels of the generator after its first layer (its width).")
    ndf: int = _option(64, "Channels of the discriminator after its first layer.")
    norm: Norm = _option("batch", "Normalisation of the generator. Only batch norm can be tiled exactly.")
    dropout: bool = _option(True, "Dropout of 0.5 in the generator while it is trained.")
    upsampling: Upsampling = _option("transposed", "How the ResNet doubles: as published, or without a checkerboard.")
    # losses
    l1_weight: float = _option(25.0, "Weight of L1, at each octave.")
    octaves: int = _option(4, "Scales at which L1 is taken, each half of the one before (1: plain L1).")
    variance_weight: float = _option(100.0, "Weight λ of the difference of batch variances (0: none).")
    variance_kind: VarianceKind = _option("unbiased", "Divide the squares by N-1 or by N.")
    # optimisation
    epochs: int = _option(100, "Half of them at the constant rate, half decaying.")
    learning_rate: float = _option(2e-4, "Of Adam, for both networks.")
    beta1: float = _option(0.5, "Of Adam.")
    beta2: float = _option(0.999, "Of Adam.")
    ema_decay: float = _option(
        0.0, "The model is a moving average of the generator's weights, of which each step keeps this share (0: none; "
        "0.999 averages over some 1000 steps)."
    )  # fmt: skip
    batch_size: int = _option(8, "Images per step, over all processes together.")
    seed: int = _option(0, "Of everything drawn at random.")
    # data
    crop_size: int = _option(256, "Side of the random crops, in px.")
    augmentation: Augmentation = _option(
        "dihedral", "Of crops: flips and right angles, the study's horizontal flip (hflip), or none."
    )
    stain_jitter: float = _option(
        0.0, "Stain crops of the H&E anew: amounts change by factors of up to exp(this), hues too (0: no; try 0.3)."
    )
    order: Order = _option(
        "AB", "Of side by side images, and of folders A and B: AB has the H&E (the input) on the left, and in A."
    )
    group_by: str | None = _option(
        None, "What may not be split: a regular expression with one named group over the names, or a CSV."
    )
    split_by_patch: bool | None = _option(
        None, "Carve validation out patch by patch where no groups are known (leaks)."
    )
    validation_share: float = _option(0.1, "Of the training patches, where the data has no validation patches.")
    overfit: int = _option(0, "Sanity check: train and validate on the same N patches (0: no).")
    # what the model says of itself; what is not given is left to the data, and then to the preset
    preset: Preset = _option("none", "Public data set whose facts fill in what neither you nor the data say.")
    mpp: float | None = _option(None, "µm per px of the patches (default: as the data says).")
    stain: str | None = _option(None, "What is made, as in HER2 (default: as the data says).")
    data_name: str | None = _option(None, "Name of the data set (default: as the data says, or its folder's).")
    about: str = _option(
        "", "What the model is for, and what not: a sentence that its users will read.", affects_result=False
    )
    data_licence: str | None = _option(None, "Licence that the model carries (default: as the data says).")
    # the run
    validate_every: int = _option(1, "Epochs between validations.")
    validation_patches: int = _option(256, "Validate on a fixed sample of this many at most (0: all).")
    best_by: BestBy = _option("stain_r_blocks", "Validation figure that chooses the best epoch.")
    checkpoint_every: int = _option(
        500, "Steps between checkpoints, beside those at each epoch's end.", affects_result=False
    )
    log_every: int = _option(20, "Steps that one row of steps.csv is the mean of.", affects_result=False)
    pictures: int = _option(4, "Validation patches in the picture of every epoch.", affects_result=False)
    tensorboard: bool = _option(True, "Also write TensorBoard events.", affects_result=False)
    # the machine
    device: str = _option("auto", "auto, cpu, cuda, cuda:0,1 or mps.", affects_result=False)
    processes: int = _option(1, "Processes on the CPU (GPUs: one each).", affects_result=False)
    nodes: int = _option(1, "Machines, where a launcher does not say.", affects_result=False)
    precision: Precision = _option("auto", "Number format of the networks; auto: the fastest that the device has.")
    workers: int = _option(-1, "Processes that decode patches (-1: by the number of cores).", affects_result=False)
    compile: bool = _option(False, "Compile the networks with torch.compile.", affects_result=False)

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
            raise OptionError(f"--mpp must lie between {MPP_RANGE[0]} and {MPP_RANGE[1]} µm per px, not {self.mpp}")
        self.spec()  # says what is wrong with the architecture
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
            raise OptionError(f"--crop-size {self.crop_size} is no multiple of {self.size_multiple}, which "
                              f"{self.network_name} needs{lower}")  # fmt: skip
        if self.octaves > 8 or self.crop_size < 2**self.octaves:
            raise OptionError(f"--octaves {self.octaves} is too many: 8 at most, and crops of {self.crop_size} px have "
                              f"{self.crop_size.bit_length() - 1}")  # fmt: skip
        if self.group_by is not None and self.split_by_patch:
            raise OptionError("--group-by and --split-by-patch contradict each other; leave one out")

    @property
    def network_depth(self) -> int:
        """Residual blocks or halvings, the default filled in."""
        return self.depth or DEFAULT_DEPTHS[self.architecture]

    @property
    def network_name(self) -> str:
        """As in "ResNet-9" or "U-Net-256"."""
        return f"U-Net-{2**self.network_depth}" if self.architecture == "unet" else f"ResNet-{self.network_depth}"

    @property
    def size_multiple(self) -> int:
        """What sides of images must be multiples of, in px, for the generator to take them."""
        return 2**self.network_depth if self.architecture == "unet" else 4

    def spec(self, **provenance: Any) -> GeneratorSpec:
        """The generator's description.

        Raises
        ------
        ModelError
            If there is no such network.
        """
        return GeneratorSpec(
            architecture=self.architecture, depth=self.network_depth, width=self.ngf, norm=self.norm,
            dropout=self.dropout, upsampling=self.upsampling, **provenance,
        )  # fmt: skip


def resolve_options(explicit: Mapping[str, Any] | None = None, *, config: Path | None = None) -> TrainOptions:
    """Put a configuration together; of two that set a field, the first in this list wins.

    ``explicit`` (the command line), the file ``config``, the defaults with the recipe "variance". What none of these
    says of the data is left to the data, and then to the preset (`data_facts`). Naming a recipe sets all fields of that
    recipe at this place: so ``--recipe pyramid`` turns the configuration of a run with another recipe into that of a
    pyramid run.

    Raises
    ------
    OptionError
        If the file cannot be read or has an unknown key, or a value is impossible.
    """
    layers: list[Mapping[str, Any]] = [{"recipe": "variance"}]
    if config is not None:
        layers.append(read_config(config))
    layers.append(explicit or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        if "recipe" in layer:
            merged.update(RECIPES[_known("recipe", layer["recipe"], RECIPES)])
        if "group_by" in layer:  # says how patches belong together, so a split by patch said elsewhere is obsolete
            merged["split_by_patch"] = None
        merged.update(layer)
    return TrainOptions(**merged)


LARGEST_CONFIG_BYTES = 1 << 20


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file: what it states, and nothing else.

    Raises
    ------
    OptionError
        If it cannot be read, is not TOML, or has a key that is not an option.
    """
    try:
        values = tomllib.loads(read_regular(path, LARGEST_CONFIG_BYTES).decode("utf-8"))
    except OSError as error:
        raise OptionError(f"the configuration {path} cannot be read ({error.strerror})") from error
    # beside TOML's own error: text that is not UTF-8, numbers of thousands of digits, arrays nested too deeply
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the configuration {path} is not TOML ({error!s:.120})") from error
    hints = get_type_hints(TrainOptions)
    for name, value in values.items():
        if isinstance(value, dict):
            raise OptionError(
                f"the configuration {path} has a table [{name}]; all options stand at the top, without one"
            )
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1, 0.75)
            meant = f"; did you mean {near[0]}?" if near else "; wsi2ihc train --help lists them"
            raise OptionError(f"the configuration {path} has the unknown option {name!r}{meant}")
        _check_type(name, value, hints[name], f"the configuration {path}: ")
    return values


def config_text(options: TrainOptions) -> str:
    """A configuration file that gives these options; what is None is left out."""
    values = dataclasses.asdict(options)
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def differences(before: TrainOptions, now: TrainOptions) -> list[str]:
    """How two configurations differ in what affects the result, one readable line each."""
    found = []
    for one in dataclasses.fields(TrainOptions):
        old, new = getattr(before, one.name), getattr(now, one.name)
        if one.metadata["affects_result"] and old != new:
            found.append(f"{flag(one.name)} {old} -> {new}")
    return found


def _toml(value: Any) -> str:
    # a JSON string, number or boolean is one of TOML too, but that JSON leaves DEL as it is
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _known(kind: str, name: Any, known: Mapping[Any, Any]) -> Any:
    if name not in known:
        raise OptionError(f"there is no {kind} {name!r:.40}; known are {', '.join(known)}")
    return name


def _check_type(name: str, value: Any, hint: Any, where: str = "") -> None:
    """TOML and callers may hand over anything."""
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
