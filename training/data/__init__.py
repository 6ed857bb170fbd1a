"""Paired H&E and IHC patches: find, group, split, check and read them.

`load_data` finds, groups and splits the pairs, `check_images` reads all headers, `decode_pairs` all pixels, and
`read_pair` decodes one pair. Batches for training come from `wsi2ihc.training.data.loader`, the only module of this
package that imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi2ihc.lazy import lazily

from .dataset import ROLES, Augmentation, Order, Pair, PairedData, Role

if TYPE_CHECKING:
    from wsi2ihc.files import IMAGE_SUFFIXES as IMAGE_SUFFIXES

    from .groups import assign_groups as assign_groups
    from .image_file import read_image as read_image
    from .images import PatchSizes as PatchSizes
    from .images import check_images as check_images
    from .images import decode_pairs as decode_pairs
    from .images import read_pair as read_pair
    from .images import read_sizes as read_sizes
    from .layouts import LAYOUTS as LAYOUTS
    from .layouts import find_pairs as find_pairs
    from .split import assign_roles as assign_roles
    from .split import load_data as load_data

_HOMES = {
    "IMAGE_SUFFIXES": "...files",
    "LAYOUTS": ".layouts",
    "PatchSizes": ".images",
    "assign_groups": ".groups",
    "assign_roles": ".split",
    "check_images": ".images",
    "decode_pairs": ".images",
    "find_pairs": ".layouts",
    "load_data": ".split",
    "read_image": ".image_file",
    "read_pair": ".images",
    "read_sizes": ".images",
}
"""Public names and where they live; imported on first use, so that the options need no decoders for their types."""

__all__ = [
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "ROLES",
    "Augmentation",
    "Order",
    "Pair",
    "PairedData",
    "PatchSizes",
    "Role",
    "assign_groups",
    "assign_roles",
    "check_images",
    "decode_pairs",
    "find_pairs",
    "load_data",
    "read_image",
    "read_pair",
    "read_sizes",
]

__getattr__ = lazily(__name__, _HOMES)
