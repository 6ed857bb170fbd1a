"""Tissue detection on an overview, mask files, and the check for H&E staining."""

from .background import green_excess, staining_warning
from .detection import Finding, detect_tissue, find_tissue, measure_background, whole_slide
from .mask import Annotation, TissueMask
from .mask_io import load_mask, read_mask, save_mask

__all__ = [
    "Annotation",
    "Finding",
    "TissueMask",
    "detect_tissue",
    "find_tissue",
    "green_excess",
    "load_mask",
    "measure_background",
    "read_mask",
    "save_mask",
    "staining_warning",
    "whole_slide",
]
