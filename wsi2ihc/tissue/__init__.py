"""Where the tissue is: detection on an overview, masks in and out, and whether the slide looks like H&E."""

from .detect import Finding, find_tissue
from .files import load_mask, read_mask, save_mask
from .mask import Annotation, TissueMask
from .placing import place_mask, without_margin
from .staining import green_excess, staining_warning
from .survey import detect_tissue, measure_glass, whole_slide

__all__ = [
    "Annotation",
    "Finding",
    "TissueMask",
    "detect_tissue",
    "find_tissue",
    "green_excess",
    "load_mask",
    "measure_glass",
    "place_mask",
    "read_mask",
    "save_mask",
    "staining_warning",
    "whole_slide",
    "without_margin",
]
