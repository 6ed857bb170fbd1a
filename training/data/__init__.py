"""Paired H&E and IHC patches: find, group, split, check and read them.

`load_data` finds, groups and splits the pairs, `check_images` reads all headers, `decode_pairs` all pixels, and
`read_pair` decodes one pair. Batches for training come from `wsi2ihc.training.data.loader`, the only module of this
package that imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .dataset import ROLES as ROLES
    from .dataset import Augmentation as Augmentation
    from .dataset import Order as Order
    from .dataset import Pair as Pair
    from .dataset import PairedData as PairedData
    from .dataset import Role as Role
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

# imported on first use, so that the options need no decoders for their types
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["ROLES", "Augmentation", "Order", "Pair", "PairedData", "Role"],
        "groups": ["assign_groups"],
        "image_file": ["read_image"],
        "images": ["PatchSizes", "check_images", "decode_pairs", "read_pair", "read_sizes"],
        "layouts": ["LAYOUTS", "find_pairs"],
        "split": ["assign_roles", "load_data"],
    },
)
