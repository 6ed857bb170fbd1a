"""Import published pix2pix, CycleGAN and BCI weights.

A generator is found in a file by the names of its weights (`_candidates`), its architecture is recognized from their
shapes (`recognize`), and spectral normalization is folded into them (`fold`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import ModelError
from ..text import pluralize
from .inference import check_response
from .model_file import COUNTER, build_network, check_state, check_values
from .model_spec import (
    DEPTHS,
    FORMAT,
    WIDTHS,
    Architecture,
    GeneratorSpec,
    Norm,
    Padding,
    check_header,
    file_sha256,
    open_model_file,
)
from .networks import ResnetGenerator, UnetGenerator
from .torch_file import LARGEST_BYTES, check_torch_version, describe_network, load_torch_file

_FORMS = (
    ("weight_orig", "weight_u", "weight_v"),
    ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
)
"""Names of the weight and the two vectors in ``nn.utils.spectral_norm`` and ``nn.utils.parametrizations``."""


def plain_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Map the names of the weights without spectral normalization to those in the file.

    Raises `ModelError` if they have weight normalization.
    """
    names = list(names)
    plain = {}
    for name in names:
        if name.endswith((".weight_g", "weight.original0")):
            raise ModelError(
                f"{source} holds a generator with weight normalization ({name!s:.80}), which is not supported; "
                "call nn.utils.remove_weight_norm on its layers, and save the state_dict again"
            )
        weight = next((form[0] for form in _FORMS if name.endswith(f".{form[0]}")), None)
        if weight is not None:
            plain[f"{name.removesuffix(weight)}weight"] = name
        elif not any(name.endswith(f".{vector}") for form in _FORMS for vector in form[1:]):
            plain[name] = name
    return plain


def fold(state: Mapping[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    """Replace weights and vectors by the normalized weights of ``network``'s layers.

    Raises `ModelError` if a vector is missing or has another size.
    """
    folded = dict(state)
    for layer_name, layer in network.named_modules():
        for form in _FORMS:
            weight_name, *vector_names = (f"{layer_name}.{part}" for part in form)
            if weight_name not in folded:
                continue
            weight = folded.pop(weight_name)
            vectors = [folded.pop(name, None) for name in vector_names]
            # torch normalizes transposed convolutions over their outputs, which are their second dimension
            matrix = (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)
            left, right = vectors
            if left is None or right is None or (len(left), len(right)) != tuple(matrix.shape):
                raise ModelError(f"{source} lacks the vectors of the spectral normalization of {layer_name}")
            norm = torch.dot(left, torch.mv(matrix, right))
            folded[f"{layer_name}.weight"] = weight / norm
    return folded


Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"model\.(\d+)\.conv_block\.(\d+)\.weight")
_LAYER = re.compile(r"model\.(\d+)\.weight")


def recognize(shapes: Shapes, source: str) -> dict[str, Any]:
    """Find the fields of a `GeneratorSpec` that describe the network.

    Raises `ModelError` if it is a variant of the ResNet or U-Net of pix2pix that is not supported; the message names
    it.
    """
    architecture: Architecture = "resnet" if len(shapes.get("model.1.weight", ())) == 4 else "unet"
    first = shapes["model.1.weight" if architecture == "resnet" else "model.model.0.weight"]
    if first[1] != 3:
        raise ModelError(
            f"{source} holds a generator for images of {pluralize(first[1], 'channel')} instead of 3 (RGB)"
        )
    if architecture == "unet":
        outputs = shapes.get("model.model.3.weight", (0, 3))[1]
    else:
        last = [shape[0] for name, shape in shapes.items() if _LAYER.fullmatch(name) and shape[2:] == (7, 7)]
        outputs = last[-1] if len(last) > 1 else 3  # if unknown, the later comparison of names reports more
    if outputs != 3:
        raise ModelError(
            f"{source} holds a generator that makes images of {pluralize(outputs, 'channel')} instead of 3 (RGB)"
        )
    if architecture == "resnet":
        _refuse_relatives(shapes, source)
    return {
        "architecture": architecture,
        "depth": _clamped(_network_depth(shapes, architecture), DEPTHS[architecture]),
        "width": _clamped(first[0], WIDTHS),
        "norm": _norm(shapes, architecture, source),
        "padding": _padding(shapes),
        "antialiasing": any(name.endswith(".filt") for name in shapes),
        "dropout": _dropout(shapes, architecture),
    }


def _refuse_relatives(shapes: Shapes, source: str) -> None:
    """Refuse ResNets of other code bases, whose layers have other positions or meanings."""
    kind = None
    blocks = [int(match[1]) for name in shapes if (match := _BLOCK.fullmatch(name))]
    if any(name.startswith("model1_1.") for name in shapes):
        kind = "pix2pixHD's local enhancer"
    elif sum(name.endswith(".filt") for name in shapes) not in (0, 4):
        kind = "a ResNet with anti-aliasing filters in some places only (CUT with --no_antialias_up)"
    elif any(".block." in name for name in shapes):
        kind = "a ResNet of PyTorch-GAN, which doubles by nearest neighbors"
    elif blocks:
        layers = sorted(
            int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name)) and len(shapes[name]) == 4
        )
        halvings = sum(index < min(blocks) for index in layers) - 1
        if halvings == 4:
            kind = "pix2pixHD's global generator, or another ResNet that halves its input four times"
        elif halvings != 2:
            kind = f"a ResNet that halves its input {pluralize(halvings, 'time')} instead of twice"
    if kind is not None:
        raise ModelError(f"{source} holds {kind}; that kind is not supported")


def _norm(shapes: Shapes, architecture: Architecture, source: str) -> Norm:
    scale, mean, bias = {
        "resnet": ("model.2.weight", "model.2.running_mean", "model.1.bias"),
        "unet": ("model.model.1.model.2.weight", "model.model.1.model.2.running_mean", "model.model.1.model.1.bias"),
    }[architecture]
    if scale in shapes and bias in shapes:
        kind = (
            "whose BatchNorm follows convolutions with biases" if mean in shapes else "whose InstanceNorm has weights"
        )
        raise ModelError(f"{source} holds a generator {kind}; that kind is not supported")
    if scale in shapes:
        return "batch"
    if bias in shapes:
        return "instance"
    raise ModelError(f"{source} holds a generator without normalization layers; that kind is not supported")


def _network_depth(shapes: Shapes, architecture: Architecture) -> int:
    if architecture == "resnet":
        return len({match[1] for name in shapes if (match := _BLOCK.match(name))})
    return sum(len(shape) == 4 for shape in shapes.values()) // 2


def _padding(shapes: Shapes) -> Padding:
    """Find the padding: reflection is a separate layer before each convolution, zero padding is not."""
    return "zero" if _has_convolution(shapes, ".conv_block.0.weight") else "reflect"


def _dropout(shapes: Shapes, architecture: Architecture) -> bool:
    """Find dropout, which shifts the second convolution of a block by one; a U-Net's names do not show it."""
    if architecture == "unet":
        return True
    return _has_convolution(shapes, f".conv_block.{4 if _padding(shapes) == 'zero' else 6}.weight")


def _has_convolution(shapes: Shapes, suffix: str) -> bool:
    return any(name.endswith(suffix) and len(shape) == 4 for name, shape in shapes.items())


def _clamped(value: int, bounds: range) -> int:
    """Clamp a value; if that changes it, the later comparison of names and shapes reports the error."""
    return min(max(value, bounds[0]), bounds[-1])


_STATISTICS = ("running_mean", "running_var")
_WEIGHT = r"(weight|weight_orig|parametrizations\.weight\.original)"
_FIRST_LAYERS = (
    (re.compile(rf"((?:.*\.)?)model\.model\.0\.{_WEIGHT}", re.DOTALL), (4, 4)),
    (re.compile(rf"((?:.*\.)?)model\.1\.{_WEIGHT}", re.DOTALL), (7, 7)),
)
"""Names of the first weights of a U-Net and a ResNet after a prefix, and the sizes of their kernels."""

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_MAPPINGS, _MAX_DEPTH = 1000, 8
_TOP = "(top level)"

State = dict[str, Tensor]


class _Candidate(NamedTuple):
    """Weights of a generator in a file, by names without prefix, and their location (``--key``)."""

    key: str
    state: State


def import_checkpoint(
    source: str | Path, *, mpp: float, stain: str, license: str | None = None, key: str | None = None
) -> tuple[ResnetGenerator | UnetGenerator, GeneratorSpec]:
    """Read the weights of a published generator, without running code in the file.

    Parameters
    ----------
    source
        File of ``torch.save``, or safetensors file of bare weights.
    mpp
        µm per px of the training images.
    stain
        Virtual stain, as in "HER2"; "IHC" if empty.
    key
        Generator to import from a file with several, as in "netG_A".

    Returns
    -------
    module, spec
        Network in float32 and evaluation mode, and its specification, for `save_checkpoint`.

    Raises
    ------
    ModelNotFoundError
        If the file is missing.
    ModelError
        If the file contains no supported generator, or several and ``key`` selects none; the message describes the
        content.
    """
    source = Path(source)
    candidate = _choose(_candidates(_load(source), source.name), key, source.name)
    _check_tensors(candidate.state, source)
    state = _without_old_statistics(candidate.state)
    shapes = {plain: tuple(state[name].shape) for plain, name in plain_names(state, source.name).items()}
    training = {"imported_from": source.name[:200], "imported_sha256": file_sha256(source)}
    if candidate.key != _TOP:
        training["imported_key"] = candidate.key[:200]
    spec = GeneratorSpec(
        **recognize(shapes, source.name), mpp=mpp, stain=stain or "IHC", license=license or "", training=training
    )
    check_state(shapes, spec, source.name)
    with torch.device("meta"):
        module = build_network(spec)
    state = fold({name: value.float() for name, value in state.items()}, module, source.name)
    for name, value in state.items():
        check_values(name, value, source.name)
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith(COUNTER)}
    module.load_state_dict(state | counters, assign=True)
    module.eval()
    check_response(module, source.name)
    return module, spec


def _load(source: Path) -> object:
    with open_model_file(source, LARGEST_BYTES) as file:
        start = file.read(9)
    if start[8:] != b"{" or start.startswith(b"PK"):
        check_torch_version()
        return load_torch_file(source)
    check_header(start, source)
    try:
        with safe_open(source, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                raise ModelError(f"{source.name} is already a model file; translate with --model {source.name}")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    except SafetensorError as error:
        raise ModelError(f"{source.name} is damaged ({error!s:.100}); download or copy it again") from error


def _candidates(loaded: object, source: str) -> list[_Candidate]:
    """Find all generators in a file, in the order of the file."""
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{source} holds a {type(loaded).__name__} instead of a generator's state dict")
    found: dict[str, _Candidate] = {}
    largest: list[str] = []
    for path, values in _mappings(loaded):
        state = _tensors(values)
        largest = max(largest, list(state), key=len)
        for prefix in _prefixes(state):
            key = ".".join([*path, prefix.rstrip(".")]).strip(".") or _TOP
            inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            found.setdefault(key, _Candidate(key, inside))
    if found:
        return list(found.values())
    if not largest:
        raise ModelError(f"{source} holds no weights, only {_listed(map(str, loaded))}")
    shapes = {name: tuple(one.shape) for _, values in _mappings(loaded) for name, one in _tensors(values).items()}
    kind = describe_network(shapes)
    known = f"; it looks like {kind}" if kind else ""
    raise ModelError(f"{source} holds neither a ResNet nor a U-Net of pix2pix, but {_listed(largest)}{known}")


def _choose(candidates: list[_Candidate], key: str | None, source: str) -> _Candidate:
    matching = candidates
    if key is not None:
        matching = [one for one in candidates if one.key == key] or [
            one for one in candidates if f".{key}." in f".{one.key}."
        ]
    if len(matching) == 1:
        return matching[0]
    keys = ", ".join(one.key for one in candidates[:10])
    if key is not None:
        what = "several generators" if matching else "no generator"
        raise ModelError(f"{source} holds {what} named {key!r:.80}; --key can be one of {keys!s:.300}")
    raise ModelError(f"{source} holds {len(candidates)} generators; choose one of them with --key: {keys!s:.300}")


def _mappings(loaded: Mapping[object, object]) -> Iterator[tuple[tuple[str, ...], Mapping[object, object]]]:
    """Yield a mapping and those nested in it, with their paths; bounded, since it may contain itself."""
    queue: deque[tuple[tuple[str, ...], Mapping[object, object]]] = deque([((), loaded)])
    for _ in range(_MAX_MAPPINGS):
        if not queue:
            return
        path, values = queue.popleft()
        yield path, values
        if len(path) < _MAX_DEPTH:
            inner = ((name, value) for name, value in values.items() if isinstance(value, Mapping))
            queue.extend(((*path, name), value) for name, value in inner if isinstance(name, str))


def _tensors(values: Mapping[object, object]) -> State:
    """Select the tensors among ``values``, without the counters of batch norms, which old files lack."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not name.endswith(COUNTER)
    }


def _prefixes(state: State) -> list[str]:
    """List the prefixes of the names of weights, one for each generator in a state dict."""
    return [
        match[1]
        for name, value in state.items()
        for pattern, kernel in _FIRST_LAYERS
        if (match := pattern.fullmatch(name)) and value.ndim == 4 and tuple(value.shape[2:]) == kernel
    ]


def _check_tensors(state: State, source: Path) -> None:
    """Refuse tensors of other types, and tensors that claim more memory than the size of the file."""
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _TYPES:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(f"{source.name}: {name!s:.80} holds {kind} numbers, which are not weights")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    stored = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    size = source.stat().st_size
    if claimed > size or sum(stored.values()) > size:
        raise ModelError(f"{source.name} is damaged: its weights claim more bytes than the file has")


def _without_old_statistics(state: State) -> State:
    """Remove the running statistics that InstanceNorm had before torch 0.4, and the published code does not use."""
    if "model.2.weight" in state or "model.model.1.model.2.weight" in state:
        return state
    return {name: value for name, value in state.items() if not name.endswith(_STATISTICS)}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return f"{pluralize(len(names), 'entry', 'entries')} such as {', '.join(names[:4])!s:.160}" if names else "nothing"
