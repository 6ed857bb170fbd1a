"""Finding a model by its name or file. Lists and built-in models need no torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..errors import ModelNotFoundError
from .builtin import counterstain, identity
from .header import SUFFIX, file_sha256, read_spec
from .model import Generator
from .spec import GeneratorSpec

DEFAULT_MODEL = "pan-ck-demo"
"""A demonstration on an epithelial marker of the colon, not HER2; see docs/models/pan-ck-demo/README.md."""

BUNDLED = Path(__file__).with_name("bundled")
"""Where trained models that come with the program lie, each as ``name.safetensors``."""

_BUILT_IN = (
    Generator(
        name="counterstain",
        version="counterstain 1",
        stain="haematoxylin",
        channel_name="counterstain (computed)",
        mpp=None,
        licence="Apache-2.0",
        description="Takes the eosin out by colour deconvolution: what an IHC-negative slide would look like.",
        pixelwise=counterstain,
        bytes_per_px=6.0,
    ),
    Generator(
        name="identity",
        version="identity 1",
        stain="H&E",
        channel_name="H&E (copy)",
        mpp=None,
        licence="Apache-2.0",
        description="Gives the slide back as it is; to test the path.",
        pixelwise=identity,
        bytes_per_px=3.0,
    ),
)


def list_models() -> tuple[Generator, ...]:
    """The models that go by a name, sorted, without their networks (see `load_generator`)."""
    bundled = map(describe_generator, BUNDLED.glob(f"*{SUFFIX}"))
    return tuple(sorted([*_BUILT_IN, *bundled], key=lambda model: model.name))


def describe_generator(name_or_path: str | Path) -> Generator:
    """Describe a model without its network, and without torch; its ``version`` tells it from every other.

    Raises
    ------
    ModelNotFoundError, ModelError
        As `load_generator` does.
    """
    found = _find(name_or_path)
    if isinstance(found, Generator):
        return found
    spec = read_spec(found)  # before the hash: it refuses what is not a model file
    return _described(found.stem, file_sha256(found), spec)


def load_generator(name_or_path: str | Path = DEFAULT_MODEL) -> Generator:
    """Load a model by its name, or from a file that `save_checkpoint` wrote.

    Without a name, the default model: a demonstration on pan-cytokeratin, not HER2.

    Raises
    ------
    ModelNotFoundError
        If there is neither a model of this name nor such a file; the message lists the names.
    ModelError
        If the file is not a usable model, or its weights make an ordinary image overflow.
    """
    found = _find(name_or_path)
    if isinstance(found, Generator):
        return found
    from .checkpoint import load_checkpoint
    from .probe import check_response

    module, spec, sha256 = load_checkpoint(found)
    if found.parent != BUNDLED:
        check_response(module, found.name)
    return replace(_described(found.stem, sha256, spec), module=module)


def _find(name_or_path: str | Path) -> Generator | Path:
    """A built-in model, or the file of another, which is there."""
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
    """Whether there is anything of this name; nothing is of a name that is too long for the system."""
    try:
        return path.exists()
    except OSError:
        return False


def _described(name: str, version: str, spec: GeneratorSpec) -> Generator:
    """What a checkpoint's description says, without its network."""
    kind = f"{'ResNet' if spec.architecture == 'resnet' else 'U-Net'} of depth {spec.depth}, width {spec.width}"
    facts = f"{kind}, {spec.norm} norm, trained at {spec.mpp:g} µm/px"
    return Generator(
        name=name,
        version=version,
        stain=spec.stain,
        channel_name=f"virtual {spec.stain} (computed)",
        mpp=spec.mpp,
        licence=spec.licence,
        description=f"{spec.about} ({facts})" if spec.about else facts,
        spec=spec,
    )
