"""Open slides, and read regions of them at any resolution."""

from .grid import WorkingGrid, overview_grid, read_overview, read_region, working_grid
from .icc import srgb_profile, to_srgb_transform
from .image_choice import NO_CHOICE, Choice
from .metadata import known_mpp
from .open import is_zarr, open_slide
from .protocol import ImageEntry, Level, Slide, SlideInfo, SlideWrapper, is_same_slide
from .readers.dicom import dicom_files, dicom_slides, is_dicom
from .slide_view import agreeing_levels, level_problems

__all__ = [
    "NO_CHOICE", "Choice", "ImageEntry", "Level", "Slide", "SlideInfo", "SlideWrapper", "WorkingGrid",
    "agreeing_levels", "dicom_files", "dicom_slides", "is_dicom", "is_same_slide", "is_zarr", "known_mpp",
    "level_problems", "open_slide", "overview_grid", "read_overview", "read_region", "srgb_profile",
    "to_srgb_transform", "working_grid",
]  # fmt: skip
