"""Paired H&E and IHC patches: find them, group them, split them, check them, read them.

`load_data` says what there is, `check_images` looks at it, and `read_pair` decodes one. Batches for training are in
`wsi2ihc.training.data.patches`, the only module here that knows torch.
"""

from .files import IMAGE_SUFFIXES
from .groups import assign_groups
from .images import PatchSizes, check_images, read_pair
from .layouts import LAYOUTS, Order, find_pairs
from .pairs import ROLES, Pair, PairedData, Role
from .split import assign_roles, load_data

__all__ = [
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "ROLES",
    "Order",
    "Pair",
    "PairedData",
    "PatchSizes",
    "Role",
    "assign_groups",
    "assign_roles",
    "check_images",
    "find_pairs",
    "load_data",
    "read_pair",
]
