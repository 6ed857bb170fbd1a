"""Model files: weights and their specification as safetensors, which run no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from ..atomic_files import disk_errors, published, remove_stale_files
from ..errors import ModelError, OutputError
from .model_spec import FORMAT, SUFFIX, VERSION, GeneratorSpec, file_sha256, open_checkpoint, spec_of
from .networks import ResnetGenerator, UnetGenerator

COUNTER = "num_batches_tracked"
"""Suffix of the counters of batch norms, which have no effect and are neither stored nor compared."""

_SAFETENSORS_TYPES = ("F16", "BF16", "F32", "F64")


def build_network(spec: GeneratorSpec) -> ResnetGenerator | UnetGenerator:
    """Build the network of a specification, with random weights, in training mode."""
    if spec.architecture == "unet":
        return UnetGenerator(spec.depth, spec.width, spec.norm, spec.dropout)
    return ResnetGenerator(
        spec.depth, spec.width, spec.norm, spec.dropout, spec.upsampling, spec.padding, spec.antialiasing
    )


def save_checkpoint(
    path: str | Path, module: nn.Module, spec: GeneratorSpec, *, half: bool = False, overwrite: bool = True
) -> str:
    """Write weights and specification atomically, and return the SHA-256 of the file, which depends on nothing else.

    An existing file with the same content is not rewritten. ``module`` is a network of `build_network` for ``spec``.
    With ``half``, the weights of convolutions (not norms and biases) are stored as float16.

    Raises
    ------
    ModelError
        If the module does not match ``spec``, or has weights that are not finite.
    OutputError
        If the file cannot be written, or exists with other content and may not be replaced.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise OutputError(f"a model file's name ends in {SUFFIX}, unlike {path.name}")
    content = _serialized(module, spec, half)
    if not overwrite and _holds(path, content):
        # A run that was killed after publishing succeeds when it is repeated.
        remove_stale_files(path)
    else:
        with published(path, overwrite) as partial, disk_errors(path):
            partial.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _serialized(module: nn.Module, spec: GeneratorSpec, half: bool) -> bytes:
    """Serialize a network after checking its weights."""
    state = {name: value.detach().cpu() for name, value in module.state_dict().items() if not name.endswith(COUNTER)}
    check_state({name: tuple(value.shape) for name, value in state.items()}, spec, "the module")
    if half:
        state = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    for name, value in state.items():
        check_values(name, value, "the module")
    state = {name: value.contiguous() for name, value in state.items()}
    return _reproducible(save(state, {"format": FORMAT, "version": str(VERSION), "spec": spec.to_json()}))


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a regular file has exactly this content."""
    try:
        return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _reproducible(content: bytes) -> bytes:
    """Sort the metadata of a file, whose order is otherwise random, so that equal models have equal hashes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def load_checkpoint(path: str | Path) -> tuple[ResnetGenerator | UnetGenerator, GeneratorSpec, str]:
    """Load a model file: the network in float32 and evaluation mode, its specification, the SHA-256 of the file.

    Raises `ModelNotFoundError` if it is missing, and `ModelError` if it is not a model file, is damaged, does not match
    its specification, or contains NaN.
    """
    path = Path(path)
    with open_checkpoint(path, "pt") as file:
        spec = spec_of(file, path)
        state = _read_state(file, spec, path.name)
    with torch.device("meta"):
        module = build_network(spec)
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith(COUNTER)}
    module.load_state_dict(state | counters, assign=True)
    return module.eval(), spec, file_sha256(path)


def check_state(shapes: Mapping[str, tuple[int, ...]], spec: GeneratorSpec, source: str) -> None:
    """Check that the names and shapes of weights match a specification.

    Raises `ModelError` naming ``source`` and the first weight that is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        network = build_network(spec)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith(COUNTER)}
    found = {k: v for k, v in shapes.items() if not k.endswith(COUNTER)}
    kind = f"{'a ResNet' if spec.architecture == 'resnet' else 'a U-Net'} of depth {spec.depth}, width {spec.width}"
    for what, odd in (("lacks", expected.keys() - found.keys()), ("has", found.keys() - expected.keys())):
        if odd:
            raise ModelError(f"{source} is not {kind} ({spec.norm} norm): it {what} {min(odd)!s:.80} ({len(odd)} such)")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelError(f"{source} is not {kind}: {name} has the shape {found[name]} instead of {shape}")


def _read_state(file: Any, spec: GeneratorSpec, name: str) -> dict[str, Tensor]:
    """Read all weights as float32, after checking names, shapes and types."""
    try:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is not a mapping)
        check_state({key: tuple(one.get_shape()) for key, one in slices.items()}, spec, name)
        state = {}
        for key, one in slices.items():
            if key.endswith(COUNTER):
                continue
            if one.get_dtype() not in _SAFETENSORS_TYPES:
                raise ModelError(f"{name}: {key} has type {one.get_dtype()}, which is not a type of weights")
            state[key] = file.get_tensor(key).to(torch.float32, copy=True)
            check_values(key, state[key], name)
        return state
    except SafetensorError as error:
        raise ModelError(f"{name} is damaged ({error!s:.100})") from error


def check_values(key: str, value: Tensor, source: str) -> None:
    """Refuse NaN, infinite weights, and negative variances (whose roots are NaN)."""
    if not bool(torch.isfinite(value).all()):
        raise ModelError(f"{source} holds values that are not finite, in {key}; its training has failed")
    if key.endswith("running_var") and bool((value < 0).any()):
        raise ModelError(f"{source} holds variances below zero, in {key}")
