"""The output: a pyramidal OME-TIFF (or OME-Zarr), which appears under its name only when it is complete."""

from ..storage import SUFFIXES, check_output, published
from .folders import ZARR_SUFFIX, check_folder_output, is_zarr, publish_folder
from .omexml import OmeImage, nominal_magnification, ome_xml
from .options import PyramidOptions
from .reading import read_level, read_overview
from .tiles import Tile
from .validation import validate
from .writer import PyramidReport, write_pyramid

__all__ = [
    "SUFFIXES",
    "ZARR_SUFFIX",
    "OmeImage",
    "PyramidOptions",
    "PyramidReport",
    "Tile",
    "check_folder_output",
    "check_output",
    "is_zarr",
    "nominal_magnification",
    "ome_xml",
    "publish_folder",
    "published",
    "read_level",
    "read_overview",
    "validate",
    "write_pyramid",
]
