"""Damage slides, and look what the program makes of them: ``python tests/fuzz/damaged_slides.py --each 50``.

Slides of seven formats are cut off, or have a bit flipped, or a hole of zeros. ``info`` and
``translate --model identity --tissue none`` run on each. What may happen:

refused   both commands, or the second one, end with exit code 1 and one line that names the file
whole     exit code 0, and the output is that of the undamaged slide, pixel by pixel
stated    exit code 0, with less than the whole slide, and a sentence that says so

and what must not happen, unless the format has nothing by which it could be noticed (see `UNNOTICEABLE`):

SILENT    exit code 0, other pixels, and not a word

This is the long mode; `test_damaged_slides.py` runs a small part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_slides import halves, texture, write_slide

from wsi2ihc.cli.main import main as wsi2ihc
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide

SIDE_PX = 640
STATED = ("Missing tiles", "Damaged tiles", "could not be read", "cannot be noticed")
"""One of these sentences must be present if less than the whole slide is translated."""

UNNOTICEABLE = {
    "JPEG": "a changed bit can leave a valid stream; libjpeg's warnings are all there is",
    "JPEG 2000": "a codestream has no checksums",
    "DICOM": "as JPEG",
}
"""Formats in which damage of single bytes cannot always be noticed, and why."""

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Kind:
    """A format: how a slide of it is written, and what its data are coded with."""

    coding: str
    suffix: str
    write: Callable[[Path], object]


def _translated(path: Path) -> None:
    """Write what this program makes of a slide."""
    source = write_slide(path.with_name("source.tif"), halves(texture(SIDE_PX, SIDE_PX), 2), mpp=0.5)
    code, text = run("translate", source, path, "--model", "identity", "--tissue", "none")
    assert code == 0, text
    source.unlink()


def kinds(dicom: Path | None) -> dict[str, Kind]:
    """The formats; a DICOM slide has to be given."""
    pyramid = halves(texture(SIDE_PX, SIDE_PX), 2)

    def tiff(**how: object) -> Callable[[Path], object]:
        return lambda path: write_slide(path, pyramid, tile=128, **how)

    found = {
        "JPEG SVS": Kind("JPEG", ".svs", tiff(style="aperio", photometric="rgb")),
        "JPEG 2000 SVS": Kind("JPEG 2000", ".svs", tiff(style="aperio", compression="jpeg2000")),
        "deflate TIFF": Kind("deflate", ".tif", tiff(compression="deflate", predictor=True)),
        "own OME-TIFF": Kind("JPEG", ".ome.tiff", _translated),
        "PNG": Kind("PNG", ".png", lambda path: PIL.Image.fromarray(pyramid[0]).save(path)),
        "BMP": Kind("BMP", ".bmp", lambda path: PIL.Image.fromarray(pyramid[0]).save(path)),
    }
    if dicom is not None:
        found["DICOM"] = Kind("DICOM", ".dcm", lambda path: path.write_bytes(dicom.read_bytes()))
    return found


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def hole(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([512, 4096])
    at = rng.randrange(max(1, len(data) - size))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


DAMAGES: dict[str, Damage] = {"cut": cut, "flip": flip, "hole": hole}


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and all that was printed of a command."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            wsi2ihc([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0), text.getvalue()
    raise AssertionError("the command did not end")


def pixels_of(path: Path) -> np.ndarray:
    with open_slide(path, mpp=0.5) as slide:
        return slide.read_level(0, Region(0, 0, slide.info.size.width, slide.info.size.height))


class Trial:
    """Damages one slide again and again."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind = folder, kind
        path = folder / f"whole{kind.suffix}"
        kind.write(path)
        self.content = path.read_bytes()
        code, text, expected = self.translated(path)
        assert code == 0, text
        assert expected is not None
        self.expected = expected

    def translated(self, path: Path) -> tuple[int, str, np.ndarray | None]:
        out = self.folder / "out.ome.tiff"
        options = ("--model", "identity", "--tissue", "none", "--mpp", 0.5, "--compression", "deflate")
        code, text = run("translate", path, out, *options)
        return code, text, pixels_of(out) if code == 0 else None

    def verdict(self, damage: Damage, rng: random.Random) -> tuple[str, str]:
        """What became of a damaged copy, and what was printed."""
        path = self.folder / f"damaged{self.kind.suffix}"
        damaged = damage(self.content, rng)
        path.write_bytes(damaged)
        kept = {f"whole{self.kind.suffix}", path.name}
        for item in self.folder.iterdir():
            if item.name not in kept:
                item.unlink()
        code, text = run("info", path)
        if code == 0:
            code, more, pixels = self.translated(path)
            text += more
        left = {item.name for item in self.folder.iterdir()} - kept
        if "Traceback" in text or "Task was destroyed" in text:
            return "NOISE", text
        if code != 0:
            if left:
                return "LEFT BEHIND", text + str(left)
            lines = [line for line in text.splitlines() if "Error" in line]
            return ("refused", text) if code == 1 and len(lines) == 1 else (f"EXIT {code}, {len(lines)} lines", text)
        if pixels is not None and np.array_equal(pixels, self.expected):
            return "whole", text
        return ("stated" if any(sentence in text for sentence in STATED) else "SILENT"), text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dicom", type=Path, help="A DICOM slide of one file.")
    parser.add_argument("--only", help="A format.")
    parser.add_argument("--show", default="", help="Print what was said where this is the verdict.")
    options = parser.parse_args()
    for name, kind in kinds(options.dicom).items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(Path(folder), kind)
            for damage_name, damage in DAMAGES.items():
                rng = random.Random(f"{options.seed} {name} {damage_name}")
                verdicts = Counter[str]()
                for _ in range(options.each):
                    verdict, text = trial.verdict(damage, rng)
                    verdicts[verdict] += 1
                    if verdict == options.show:
                        sys.stdout.write(text)
                reason = UNNOTICEABLE.get(kind.coding, "") if verdicts["SILENT"] else ""
                sys.stdout.write(f"{name:14} {damage_name:8} {dict(sorted(verdicts.items()))} {reason}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
