"""Reading the state dicts of the published pix2pix and BCI generators (``.pth``).

They come as bare state dicts or wrapped in a dictionary, with or without the prefixes that data parallelism and
compilation leave, and nothing in them says which options they were made with: users report released weights that do
not fit the published default options. So architecture, depth, width, norm and dropout are told from names and shapes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, ModelNotFoundError
from .checkpoint import COUNTER, build_network, check_state, check_values
from .header import file_sha256
from .networks import ResnetGenerator, UnetGenerator
from .spec import DEPTHS, WIDTHS, Architecture, GeneratorSpec, Norm

_WRAPPERS = (
    "netG", "net_G", "G", "generator", "generator_state_dict", "G_state_dict",
    "state_dict", "model_state_dict", "model", "net", "params", "weights",
)  # fmt: skip
_PREFIXES = ("module.", "_orig_mod.", "netG.", "net_G.", "generator.", "G.")
_STATISTICS = ("running_mean", "running_var")

State = dict[str, Tensor]


def import_checkpoint(
    source: str | Path, *, mpp: float, stain: str, licence: str | None = None
) -> tuple[ResnetGenerator | UnetGenerator, GeneratorSpec]:
    """Read a published generator's weights, without running any code that the file may hold.

    Parameters
    ----------
    source:
        a file that ``torch.save`` wrote
    mpp:
        µm per px of the images that the generator was trained on
    stain:
        what it makes, as in "HER2"; "IHC" where that is left empty
    licence:
        of the weights, where known

    Returns
    -------
    The network in float32 and evaluation mode, and its description; for `save_checkpoint`.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelError
        If the file holds no generator that this program knows; the message says what was found.
    """
    source = Path(source)
    state = _unwrap(_load(source), source.name)
    architecture = _architecture(state, source.name)
    norm = _norm(state, architecture, source.name)
    if norm == "instance":
        # torch before 0.4 kept running statistics in InstanceNorm, and its evaluation mode did not use them.
        state = {name: value for name, value in state.items() if not name.endswith(_STATISTICS)}
    first = state["model.1.weight" if architecture == "resnet" else "model.model.0.weight"]
    spec = GeneratorSpec(
        architecture=architecture,
        depth=_clamped(_depth(state, architecture), DEPTHS[architecture]),
        width=_clamped(first.shape[0], WIDTHS),
        norm=norm,
        dropout=_dropout(state, architecture),
        mpp=mpp,
        stain=stain or "IHC",
        licence=licence or "",
        training={"imported_from": source.name, "imported_sha256": file_sha256(source)},
    )
    check_state({name: tuple(value.shape) for name, value in state.items()}, spec, source.name)
    module = build_network(spec)
    for name, value in state.items():
        check_values(name, value, source.name)
    counters = {name: value for name, value in module.state_dict().items() if name.endswith(COUNTER)}
    module.load_state_dict(state | counters)
    return module.float().eval(), spec


def _load(source: Path) -> object:
    if not source.exists():
        raise ModelNotFoundError(f"there is no model file {source}")
    if not source.is_file():
        raise ModelError(f"{source} is no model file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickles; what matters is whether it loads
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler lets any kind of exception out of a damaged file
        raise ModelError(
            f"{source.name} is no file of plain PyTorch weights, or is damaged; a file that holds other objects is not "
            "opened, since that could run code: save its state_dict alone"
        ) from error


def _unwrap(loaded: object, source: str) -> State:
    """The generator's state dict, out of its wrapping dictionaries and without common prefixes of its names."""
    inner: object = loaded
    while inner is not None:
        loaded = inner
        inner = None
        if isinstance(loaded, Mapping):
            inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{source} holds a {type(loaded).__name__} instead of a generator's state dict")
    state = _tensors(loaded)
    if not state:
        raise ModelError(f"{source} holds no weights, only {_listed(map(str, loaded))}")
    shorter = True
    while shorter:
        shorter = False
        for prefix in _PREFIXES:
            inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if inside:
                state, shorter = inside, True
    if state.get("model.model.1.weight", torch.empty(0)).ndim == 4:  # a ResNet as the attribute "model" of something
        state = {name.removeprefix("model."): value for name, value in state.items()}
    return state


def _tensors(values: Mapping[Any, Any]) -> State:
    """The tensors among ``values``, but for the counters of batch norms, which old files lack."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not name.endswith(COUNTER)
    }


def _architecture(state: State, source: str) -> Architecture:
    kinds: dict[str, tuple[Architecture, int]] = {
        "model.1.weight": ("resnet", 7),
        "model.model.0.weight": ("unet", 4),
    }
    for name, (architecture, kernel) in kinds.items():
        first = state.get(name)
        if first is None or first.ndim != 4 or tuple(first.shape[2:]) != (kernel, kernel):
            continue
        if first.shape[1] != 3:
            raise ModelError(f"{source} holds a generator for images of {first.shape[1]} channels instead of 3 (RGB)")
        return architecture
    raise ModelError(f"{source} holds neither a ResNet nor a U-Net of pix2pix, but {_listed(state)}")


def _norm(state: State, architecture: Architecture, source: str) -> Norm:
    scale, bias = {
        "resnet": ("model.2.weight", "model.1.bias"),
        "unet": ("model.model.1.model.2.weight", "model.model.1.model.1.bias"),
    }[architecture]
    if scale in state and bias in state:
        raise ModelError(f"{source} holds a generator whose InstanceNorm has weights; that kind is not supported")
    if scale in state:
        return "batch"
    if bias in state:
        return "instance"
    raise ModelError(f"{source} holds a generator without normalisation layers; that kind is not supported")


def _depth(state: State, architecture: Architecture) -> int:
    if architecture == "resnet":
        return len({match[1] for name in state if (match := re.match(r"model\.(\d+)\.conv_block\.", name))})
    return sum(value.ndim == 4 for value in state.values()) // 2


def _dropout(state: State, architecture: Architecture) -> bool:
    """With dropout the second convolution of a block stands one place later; a U-Net's names do not tell."""
    if architecture == "unet":
        return True
    return any(name.endswith(".conv_block.6.weight") and value.ndim == 4 for name, value in state.items())


def _clamped(value: int, bounds: range) -> int:
    """The value within bounds; where that changes it, the comparison of names and shapes says what is wrong."""
    return min(max(value, bounds[0]), bounds[-1])


def _listed(names: Any) -> str:
    names = list(names)
    return f"{len(names)} entries such as {', '.join(names[:4])!s:.160}" if names else "nothing"
