"""Reading the weights of published pix2pix, CycleGAN and BCI generators (``.pth``, ``.safetensors``).

They come as bare state dicts, in training checkpoints of any nesting, with or without the prefixes that data
parallelism, compilation and Lightning leave, and nothing in them says which options they were made with: users report
released weights that do not fit the published default options. So the generator is looked for by the names and shapes
of its first layer, and architecture, depth, width, norm, padding and dropout follow from those of the others.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelError
from ..text import pluralize
from .architecture import recognize
from .checkpoint import COUNTER, build_network, check_state, check_values
from .header import FORMAT, check_header, file_sha256, open_model_file
from .lookalikes import describe_network
from .networks import ResnetGenerator, UnetGenerator
from .probe import check_response
from .spec import GeneratorSpec
from .spectral_norm import fold, plain_names
from .torch_file import LARGEST_BYTES, check_torch_version, load_torch_file

_STATISTICS = ("running_mean", "running_var")
_WEIGHT = r"(weight|weight_orig|parametrizations\.weight\.original)"
_FIRST_LAYERS = (
    (re.compile(rf"((?:.*\.)?)model\.model\.0\.{_WEIGHT}", re.DOTALL), (4, 4)),
    (re.compile(rf"((?:.*\.)?)model\.1\.{_WEIGHT}", re.DOTALL), (7, 7)),
)
"""Names of a generator's first weights, of a U-Net and of a ResNet, after a prefix; and the size of their kernels."""

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_MAPPINGS, _DEEPEST = 1000, 8
_TOP = "(top level)"

State = dict[str, Tensor]


class _Candidate(NamedTuple):
    """A generator's weights in a file: where they are (``--key``), and their names without prefix."""

    key: str
    state: State


def import_checkpoint(
    source: str | Path, *, mpp: float, stain: str, licence: str | None = None, key: str | None = None
) -> tuple[ResnetGenerator | UnetGenerator, GeneratorSpec]:
    """Read a published generator's weights, without running any code that the file may hold.

    Parameters
    ----------
    source:
        a file that ``torch.save`` wrote, or a safetensors file of bare weights
    mpp:
        µm per px of the images that the generator was trained on
    stain:
        what it makes, as in "HER2"; "IHC" where that is left empty
    licence:
        of the weights, where known
    key:
        which generator to take from a file that holds several, as in "netG_A"

    Returns
    -------
    The network in float32 and evaluation mode, and its description; for `save_checkpoint`.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelError
        If the file holds no generator that this program knows, or several and ``key`` names none of them; the message
        says what was found.
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
        **recognize(shapes, source.name), mpp=mpp, stain=stain or "IHC", licence=licence or "", training=training
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
                raise ModelError(
                    f"{source.name} is a model of this program already; translate with --model {source.name}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    except SafetensorError as error:
        raise ModelError(f"{source.name} is damaged ({error!s:.100}); download or copy it again") from error


def _candidates(loaded: object, source: str) -> list[_Candidate]:
    """All generators in a file, in the order of the file."""
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
    looks = describe_network({name: tuple(value.shape) for name, value in _all_tensors(loaded)})
    known = f"; it looks like {looks}" if looks else ""
    raise ModelError(f"{source} holds neither a ResNet nor a U-Net of pix2pix, but {_listed(largest)}{known}")


def _choose(candidates: list[_Candidate], key: str | None, source: str) -> _Candidate:
    fitting = candidates
    if key is not None:
        fitting = [one for one in candidates if one.key == key] or [
            one for one in candidates if f".{key}." in f".{one.key}."
        ]
    if len(fitting) == 1:
        return fitting[0]
    keys = ", ".join(one.key for one in candidates[:10])
    if key is not None:
        what = "several generators" if fitting else "no generator"
        raise ModelError(f"{source} holds {what} named {key!r:.80}; --key can be one of {keys!s:.300}")
    raise ModelError(f"{source} holds {len(candidates)} generators; choose one of them with --key: {keys!s:.300}")


def _mappings(loaded: Mapping[object, object]) -> Iterator[tuple[tuple[str, ...], Mapping[object, object]]]:
    """Mappings inside a mapping, itself first, with the names that lead to them; bounded, since it may hold itself."""
    waiting: deque[tuple[tuple[str, ...], Mapping[object, object]]] = deque([((), loaded)])
    for _ in range(_MOST_MAPPINGS):
        if not waiting:
            return
        path, values = waiting.popleft()
        yield path, values
        if len(path) < _DEEPEST:
            inner = ((name, value) for name, value in values.items() if isinstance(value, Mapping))
            waiting.extend(((*path, name), value) for name, value in inner if isinstance(name, str))


def _tensors(values: Mapping[object, object]) -> State:
    """The tensors among ``values``, without the counters of batch norms, which old files lack."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not name.endswith(COUNTER)
    }


def _all_tensors(loaded: Mapping[object, object]) -> Iterator[tuple[str, Tensor]]:
    for _, values in _mappings(loaded):
        yield from _tensors(values).items()


def _prefixes(state: State) -> list[str]:
    """What comes before the names of a generator's weights, for each generator in a state dict."""
    return [
        match[1]
        for name, value in state.items()
        for pattern, kernel in _FIRST_LAYERS
        if (match := pattern.fullmatch(name)) and value.ndim == 4 and tuple(value.shape[2:]) == kernel
    ]


def _check_tensors(state: State, source: Path) -> None:
    """Refuse numbers that are not weights, and tensors that claim more memory than the file holds."""
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _TYPES:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(f"{source.name}: {name!s:.80} holds {kind} numbers, which are not weights")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    stored = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    size = source.stat().st_size
    if claimed > size or sum(stored.values()) > size:
        raise ModelError(f"{source.name} is damaged: its weights claim more bytes than the file holds")


def _without_old_statistics(state: State) -> State:
    """Torch before 0.4 kept running statistics in InstanceNorm, which the published code does not use."""
    scales = ("model.2.weight", "model.model.1.model.2.weight")
    if any(name in state for name in scales):
        return state
    return {name: value for name, value in state.items() if not name.endswith(_STATISTICS)}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return f"{pluralize(len(names), 'entry', 'entries')} such as {', '.join(names[:4])!s:.160}" if names else "nothing"
