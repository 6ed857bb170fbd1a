"""From a file to pixels: open a slide, and read any region of it at any resolution."""

from .agreement import agreeing_levels, level_problems
from .colour import srgb_profile, to_srgb_transform
from .dicom_folder import dicom_files, dicom_slides, is_dicom
from .grid import WorkingGrid, overview_grid, working_grid
from .image_choice import NO_CHOICE, Choice
from .opening import is_zarr, open_slide
from .protocol import ImageEntry, Level, Slide, SlideInfo, SlideWrapper, is_same_slide
from .regions import read_overview, read_region
from .resolution import known_mpp

__all__ = [
    "NO_CHOICE",
    "Choice",
    "ImageEntry",
    "Level",
    "Slide",
    "SlideInfo",
    "SlideWrapper",
    "WorkingGrid",
    "agreeing_levels",
    "dicom_files",
    "dicom_slides",
    "is_dicom",
    "is_same_slide",
    "is_zarr",
    "known_mpp",
    "level_problems",
    "open_slide",
    "overview_grid",
    "read_overview",
    "read_region",
    "srgb_profile",
    "to_srgb_transform",
    "working_grid",
]
