"""What is known of public data sets, for where they do not say it themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["none", "bci"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "none": {},
    "bci": {
        "mpp": 0.46,
        "stain": "HER2",
        "data_name": "BCI",
        "data_licence": "BCI: non-commercial research only",
        # the names hold no patient or slide, so nothing better is possible; every run warns of it
        "split_by_patch": True,
    },
}
"""Values of options of `TrainOptions`. They fill in what neither the user nor the data say, and replace nothing."""
