"""Which pixels count as 8-bit RGB: one list for all readers.

A brightfield slide is 8-bit RGB. Other pixels are either converted, with a note, or refused: libraries silently show
gray levels, inks and unknown extra samples as colors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UnreadableSlideError
from ..text import pluralize

if TYPE_CHECKING:
    from tifffile import TiffPage

_RGB, _PALETTE, _YCBCR = 2, 3, 6

_PHOTOMETRIC = {
    0: "gray levels (MinIsWhite)",
    1: "gray levels (MinIsBlack)",
    4: "a transparency mask",
    5: "inks (CMYK)",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a color filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw samples",
    51177: "a depth map",
}
"""PhotometricInterpretation (TIFF tag 262) that is not RGB."""

_SAMPLE_FORMAT = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}

Alpha = Literal["", "straight", "premultiplied", "unspecified"]


@dataclass(frozen=True, slots=True)
class PixelKind:
    """The kind of the samples of an image.

    samples:  samples per pixel
    bits:     bits per sample
    problem:  why they are not 8-bit RGB, to follow "its pixels"; "" if they are
    alpha:    what the fourth sample is; "" if there is none
    note:     how they are converted, one sentence, or ""
    """

    samples: int
    bits: int
    problem: str = ""
    alpha: Alpha = ""
    note: str = ""

    @property
    def is_rgb(self) -> bool:
        """Whether the image can be a slide."""
        return not self.problem

    def refusal(self, name: str) -> UnreadableSlideError:
        """Create the error for a file with pixels of this kind."""
        return not_rgb(name, self.problem)


def pixel_kind(page: TiffPage) -> PixelKind:
    """Determine the kind of the pixels of a TIFF page from its tags."""
    samples, bits = int(page.samplesperpixel), int(page.bitspersample)
    photometric = int(page.photometric)

    def bad(problem: str) -> PixelKind:
        return PixelKind(samples, bits, problem)

    depths = page.tags.valueof(258, default=bits)
    depths = depths if isinstance(depths, tuple) else (depths,)
    if bits != 8 or any(depth != 8 for depth in depths):
        return bad(samples_of_bits(samples, max(bits, *map(int, depths))))
    if int(page.sampleformat) in _SAMPLE_FORMAT:
        return bad(f"are {_SAMPLE_FORMAT[int(page.sampleformat)]}")
    if int(page.imagedepth) != 1:
        return bad(f"lie in {page.imagedepth} planes of one image (ImageDepth)")
    if photometric == _PALETTE and samples == 1:
        return PixelKind(samples, bits, note="Its colors are indexed (a palette); they are converted to RGB.")
    if samples < 3:
        return bad(samples_of_bits(samples, bits))
    if photometric not in (_RGB, _YCBCR):
        meaning = _PHOTOMETRIC.get(photometric, f"of an unknown kind (PhotometricInterpretation {photometric})")
        return bad(f"have {samples} samples that the file declares to be {meaning}")
    if samples == 3:
        return PixelKind(samples, bits)
    if samples > 4 or photometric == _YCBCR:
        return bad(f"have {samples} samples, of which only 3 are colors")
    return PixelKind(samples, bits, alpha=_alpha(page))


def samples_of_bits(samples: int, bits: int) -> str:
    """Describe pixels that have too few samples, or samples of another depth."""
    return f"have {pluralize(samples, 'sample')} of {pluralize(bits, 'bit')}"


def not_rgb(name: str, problem: str) -> UnreadableSlideError:
    """Create the error for an image with pixels of another kind; ``problem`` follows "its pixels"."""
    return UnreadableSlideError(
        f"{name}: its pixels {problem}, not 8-bit RGB, so it cannot be read as a brightfield slide; "
        "export the H&E image as 8-bit RGB"
    )


def _alpha(page: TiffPage) -> Alpha:
    """Determine the kind of the fourth sample (ExtraSamples, TIFF tag 338)."""
    extra = [int(kind) for kind in page.extrasamples]
    if extra[:1] == [1]:
        return "premultiplied"
    return "straight" if extra[:1] == [2] else "unspecified"
