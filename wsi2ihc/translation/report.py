"""What came out of a translation: for the summary, the JSON beside the file, and the provenance inside it.

Nothing here may identify a patient: of the source only its base name and hash are told, and no paths at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import runtime
from ..arrays import RGB
from ..files import read_json
from ..generator.model import Generator
from ..geometry import Region, Size
from ..pyramid import PyramidOptions, is_zarr, published
from .options import TranslateOptions
from .seams import SeamFigures

DISCLAIMER = "Computed from H&E by a neural network or colour model: research use only, not for diagnosis."


@dataclass(frozen=True, slots=True)
class TranslateReport:
    """The facts of one finished translation; lengths in px of level 0 of source or output, times in seconds.

    ``output_sha256`` is that of the OME-TIFF's bytes, or of an OME-Zarr's files (`wsi2ihc.files.sha256_of`).
    ``position_um`` is where the output's corner lies, from the corner of the slide's level 0.
    ``annotations`` are the classes and names in the mask file, if it has some: "class", "name", "areas", "ignored".
    ``seams`` is None where there can be none, since the model looks at one pixel at a time. ``fingerprint`` is that of
    the translation's identity. Where several processes took part, "run" and "generator" among the seconds are sums.
    """

    source: dict[str, Any]
    model: dict[str, Any]
    options: dict[str, Any]
    output_name: str
    output_size: Size
    output_mpp: tuple[float, float]
    output_levels: tuple[Size, ...]
    output_bytes: int
    output_sha256: str
    extent: Region
    position_um: tuple[float, float]
    tissue_share: float
    annotations: tuple[dict[str, Any], ...]
    glass: RGB
    fill: RGB
    plan: dict[str, Any]
    device: str
    precision: str
    blend: str
    seams: SeamFigures | None
    seconds: dict[str, float]
    mpx_per_s: float
    unreadable_regions: int
    warnings: tuple[str, ...]
    versions: dict[str, str]
    fingerprint: str
    created: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes as it is."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        if self.seams is not None:
            plain["seams"]["z"] = self.seams.z
        plain["disclaimer"] = DISCLAIMER
        return plain

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> TranslateReport:
        """The inverse of `to_json`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If these are no facts of a translation.
        """
        seams = facts["seams"]
        if seams is not None:
            seams = SeamFigures(**{one.name: seams[one.name] for one in dataclasses.fields(SeamFigures)})
        return cls(**{
            **{one.name: facts[one.name] for one in dataclasses.fields(cls)},
            "output_size": Size(**facts["output_size"]),
            "output_mpp": tuple(facts["output_mpp"]),
            "position_um": tuple(facts["position_um"]),
            "output_levels": tuple(Size(**size) for size in facts["output_levels"]),
            "extent": Region(**facts["extent"]),
            "annotations": tuple(facts["annotations"]),
            "glass": tuple(facts["glass"]),
            "fill": tuple(facts["fill"]),
            "seams": seams,
            "warnings": tuple(facts["warnings"]),
        })  # fmt: skip


def write_report(path: Path, report: TranslateReport) -> None:
    """Write the report as JSON, in one piece; a report that is there is replaced."""
    text = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
    with published(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def is_report_of(path: Path, name: str, quickhash: str) -> bool:
    """Whether a file is the report of an output of this name, made from this slide."""
    try:
        report = TranslateReport.from_json(read_json(path))
        return report.output_name == name and report.source["quickhash"] == quickhash
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter; those not installed are left out."""
    return runtime.versions("torch")


def describe_model(generator: Generator) -> dict[str, Any]:
    """The facts of a generator, as JSON values."""
    facts: dict[str, Any] = {
        "name": generator.name,
        "version": generator.version,
        "channel": generator.channel_name,
        "stain": generator.stain,
        "mpp": generator.mpp,
        "licence": generator.licence,
        "description": generator.description,
    }
    if generator.spec is not None:
        facts["spec"] = json.loads(generator.spec.to_json())
    return facts


def options_for_report(options: TranslateOptions, output: str) -> dict[str, Any]:
    """The options that made an output of this name what it is, without anything that names a folder."""
    plain = dataclasses.asdict(options)
    for name in ("preview", "overwrite", "resume", "band_px"):
        plain.pop(name)
    if plain["tissue"] not in ("auto", "none"):
        plain["tissue"] = Path(plain["tissue"]).suffix.lstrip(".") + " mask"
    plain["pyramid"] = _stored(options.pyramid, output)
    return plain


def is_stored_as(known: Mapping[str, Any], output: Path, asked: PyramidOptions) -> bool:
    """Whether an output whose report says ``known`` of its pyramid is stored as asked.

    Tiles are left aside: their size is part of the translation's identity, and fitted to small images.
    """
    return {**known, "tile_px": 0} == {**_stored(asked, output.name), "tile_px": 0}


def unused_in_zarr(pyramid: PyramidOptions) -> list[str]:
    """Options of the command line that were chosen and mean nothing in an OME-Zarr."""
    default = dataclasses.asdict(PyramidOptions(tile_px=pyramid.tile_px))
    chosen = dataclasses.asdict(pyramid).items() - default.items()
    return [f"--{name.replace('_', '-')}" for name in default if name in dict(chosen)]


def _stored(pyramid: PyramidOptions, output: str) -> dict[str, Any]:
    """What of the options an output of this name has."""
    if is_zarr(Path(output)):
        return {"tile_px": pyramid.tile_px, "compression": "zstd"}
    return dataclasses.asdict(pyramid)
