"""Text and a scale bar below a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..arrays import RGB, WHITE, RGBImage

INK: RGB = (40, 40, 40)
TEXT_PX = 16

_MARGIN_PX, _LINE_PX = 10, 24

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def swatch(colour: RGB) -> RGBImage:
    """A sample of a colour for `with_foot`."""
    return np.full((TEXT_PX, TEXT_PX, 3), colour, np.uint8)


def with_foot(image: RGBImage, entries: Sequence[tuple[str, RGBImage | None]], mpp: float) -> RGBImage:
    """The image with lines of text below, each with a sample of colour before it or none, and a scale bar.

    Parameters
    ----------
    image
        (rows, columns, 3)
    entries
        Texts, and `TEXT_PX` high samples.
    mpp
        µm per px of the image.
    """
    font = ImageFont.load_default(TEXT_PX)
    bar_um = _round_length(image.shape[1] * mpp / 5)
    bar_px = max(1, round(bar_um / mpp))
    bar_text = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} µm"
    room_px = image.shape[1] - 3 * _MARGIN_PX - bar_px
    places, lines = _flowed([_entry_width(text, sample, font) for text, sample in entries], room_px)
    height = image.shape[0] + 2 * _MARGIN_PX + max(lines, 2) * _LINE_PX
    canvas = Image.new("RGB", (image.shape[1], height), WHITE)
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    top = image.shape[0] + _MARGIN_PX
    for (text, sample), (x, line) in zip(entries, places, strict=True):
        left = _MARGIN_PX + x
        if sample is not None:
            canvas.paste(Image.fromarray(sample), (left, top + line * _LINE_PX + (_LINE_PX - TEXT_PX) // 2))
            left += sample.shape[1] + 6
        shown = _shortened(text, max(room_px - (left - _MARGIN_PX), 1), font)
        _write(draw, left, top + line * _LINE_PX + _LINE_PX // 2, shown, font)
    right = image.shape[1] - _MARGIN_PX
    draw.rectangle((right - bar_px, top + 4, right, top + 9), fill=INK)
    _write(draw, right - math.ceil(_length(bar_text, font)), top + _LINE_PX + _LINE_PX // 2 - 4, bar_text, font)
    return np.array(canvas, dtype=np.uint8)


def _write(draw: ImageDraw.ImageDraw, left: int, middle: int, text: str, font: _Font) -> None:
    """One line of text. Pillow's own font has no µ: it is drawn as a u with a longer stem."""
    plain = text.replace("µ", "u")
    draw.text((left, middle), plain, fill=INK, font=font, anchor="lm")
    for at in (number for number, character in enumerate(text) if character == "µ"):
        x, _, _, baseline = draw.textbbox((left + font.getlength(plain[:at]), middle), "u", font=font, anchor="lm")
        stem = round(x)
        draw.rectangle((stem, round(baseline) - 2, stem + TEXT_PX // 16, round(baseline) + TEXT_PX // 4), fill=INK)


def _length(text: str, font: _Font) -> float:
    return float(font.getlength(text.replace("µ", "u")))


def _entry_width(text: str, sample: RGBImage | None, font: _Font) -> int:
    return math.ceil(_length(text, font)) + (0 if sample is None else sample.shape[1] + 6)


def _flowed(widths_px: Sequence[int], room_px: int) -> tuple[list[tuple[int, int]], int]:
    """Entries side by side, in as many lines as they need: (x, line) of each, and the number of lines."""
    places: list[tuple[int, int]] = []
    x, line = 0, 0
    for width in widths_px:
        if x and x + width > room_px:
            x, line = 0, line + 1
        places.append((x, line))
        x += width + 24
    return places, line + 1


def _round_length(um: float) -> float:
    """The greatest of 1, 2, 5, 10, 20, … µm that is not longer."""
    power = 10.0 ** math.floor(math.log10(um))
    return max(step * power for step in (1, 2, 5) if step * power <= um * (1 + 1e-9))


def _shortened(text: str, room_px: int, font: _Font) -> str:
    """The text, or as much of its two ends as fits."""
    shorter = text
    for kept in range(len(text) - 1, 0, -1):
        if _length(shorter, font) <= room_px:
            break
        shorter = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
    return shorter
