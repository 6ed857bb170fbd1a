"""What makes virtual images of H&E images: trained models, and the floors that they have to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsi2ihc.arrays import RGBBatch
from wsi2ihc.errors import OptionError

from ..floors import ColourRegression

Kind = Literal["model", "floor", "given"]


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A way from H&E to a virtual stain.

    name:         in tables; unique among those that are compared
    kind:         a trained model, a floor, or images that some other program made
    translate:    images (N, H, W, 3) uint8 to as many; None for given images
    multiple_px:  sides of images must be multiples of this
    halo_px:      how far from its border an image can tell that nothing lies beyond; None where that is no local matter
    facts:        what it is, for the report: JSON values, no paths
    """

    name: str
    kind: Kind
    translate: Callable[[RGBBatch], RGBBatch] | None
    multiple_px: int = 1
    halo_px: int | None = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def load_methods(models: Sequence[str], device: str, precision: str) -> list[Method]:
    """Load models by name or file. Patches are translated by one plain pass with the network's own padding.

    Raises
    ------
    ModelNotFoundError
        If there is no such model.
    ModelError
        If a file is no usable model.
    OptionError
        If a model is named twice.
    DeviceError
        If there is no such device, or it cannot work in this precision.
    """
    from wsi2ihc.generator.model import make_translator
    from wsi2ihc.generator.registry import load_generator

    methods: list[Method] = []
    for model in models:
        generator = load_generator(model)
        translator = make_translator(generator, device, precision, exact=False)
        reach = generator.dependency
        facts = {
            "version": generator.version,
            "stain": generator.stain,
            "mpp": generator.mpp,
            "licence": generator.licence,
            "description": generator.description,
        }
        # models of several runs have one name each, model.safetensors: then the run's folder tells them apart
        name = generator.name if generator.name != "model" else Path(model).resolve().parent.name
        if any(method.name == name for method in methods):
            raise OptionError(f"two models are called {name}; rename one of the files, so that tables can tell them")
        halo_px = reach.radius_px if reach.is_local else None
        methods.append(Method(name, "model", translator, translator.multiple_px, halo_px, facts))
    return methods


def floors(regression: ColourRegression | None, taken: Sequence[str] = ()) -> list[Method]:
    """Both floors: ``counterstain``, and the colour regression if there was something to fit it to."""
    from wsi2ihc.generator.builtin import counterstain

    found = []
    if "counterstain" not in taken:
        what = "H&E without its eosin: no learning"
        found.append(Method("counterstain", "floor", counterstain, facts={"description": what}))
    if regression is not None:
        what = "a quadratic polynomial from colour to colour, fitted on the training split; each px by itself"
        found.append(Method("colour regression", "floor", regression, facts={"description": what}))
    return found
