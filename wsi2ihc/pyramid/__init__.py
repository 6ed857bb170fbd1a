"""The output: a pyramidal OME-TIFF that is written in one pass and appears under its name only when complete."""

from .atomic import SUFFIXES, check_output, published
from .omexml import OmeImage, nominal_magnification, ome_xml
from .options import PyramidOptions
from .reading import read_level, read_overview
from .tiles import Tile
from .validation import validate
from .writer import PyramidReport, write_pyramid

__all__ = [
    "SUFFIXES",
    "OmeImage",
    "PyramidOptions",
    "PyramidReport",
    "Tile",
    "check_output",
    "nominal_magnification",
    "ome_xml",
    "published",
    "read_level",
    "read_overview",
    "validate",
    "write_pyramid",
]
