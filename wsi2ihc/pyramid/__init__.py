"""Pyramidal output files: OME-TIFF and OME-Zarr."""

from ..atomic_files import SUFFIXES, check_output, published
from .encode import PyramidOptions
from .levels import Tile
from .ome_tiff import PyramidReport, write_pyramid
from .ome_xml import ImageDescription, nominal_magnification, ome_xml
from .ome_zarr import ZARR_SUFFIX, check_zarr_output, is_zarr, publish_folder
from .verify import read_level, read_overview, validate

__all__ = [
    "SUFFIXES", "ZARR_SUFFIX", "ImageDescription", "PyramidOptions", "PyramidReport", "Tile", "check_output",
    "check_zarr_output", "is_zarr", "nominal_magnification", "ome_xml", "publish_folder", "published", "read_level",
    "read_overview", "validate", "write_pyramid",
]  # fmt: skip
