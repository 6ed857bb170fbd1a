"""How to register two slides: every choice a user has, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import OptionError

SPACING_UM = (16.0, 2000.0)


@dataclass(frozen=True, slots=True)
class RegistrationOptions:
    """Options of `register`.

    mirror:      whether the moving slide may lie face down
    local:       whether to estimate the local field beside the affine map
    spacing_um:  distance of the field's control points; more where there would be over 200 along a side
    """

    mirror: bool = field(default=False, metadata={"help": "Also look for an IHC section that lies face down."})
    local: bool = field(default=True, metadata={"help": "Estimate a local deformation beside the affine map."})
    spacing_um: float = field(default=64.0, metadata={"help": "Distance of the deformation's control points in µm."})

    def __post_init__(self) -> None:
        if not SPACING_UM[0] <= self.spacing_um <= SPACING_UM[1]:
            raise OptionError(
                f"--spacing-um {self.spacing_um:g} is not between {SPACING_UM[0]:g} and {SPACING_UM[1]:g} µm"
            )
