"""Exit codes of good and bad calls, and what they leave behind."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import snapshot_inputs as inputs
from PIL import Image
from snapshot_commands import Ended, Run
from snapshot_compare import Snapshot

CALLS = """
wsi2ihc
--help
--version
-h
nonsense
--nonsense
translate
translate SLIDE
translate --help
translate lost.svs out.ome.tiff
translate TEXT out.ome.tiff
translate EMPTY out.ome.tiff
translate FOLDER out.ome.tiff
translate CUT out.ome.tiff
translate SLIDE out.jpg
translate SLIDE there.ome.tiff
translate SLIDE out.ome.tiff --nonsense
translate SLIDE out.ome.tiff --model lost.safetensors
translate SLIDE out.ome.tiff --model nonsense
translate SLIDE out.ome.tiff --model TEXT
translate SLIDE out.ome.tiff --device nonsense
translate SLIDE out.ome.tiff --device cuda:99
translate SLIDE out.ome.tiff --precision fp8
translate SLIDE out.ome.tiff --region 1,2,3
translate SLIDE out.ome.tiff --region 9000,9000,10,10
translate SLIDE out.ome.tiff --region 0,0,0,0
translate SLIDE out.ome.tiff --max-memory 1
translate SLIDE out.ome.tiff --max-memory lots
translate SLIDE out.ome.tiff --tile-size 100
translate SLIDE out.ome.tiff --quality 101
translate SLIDE out.ome.tiff --core-size 3
translate SLIDE out.ome.tiff --band-height 3
translate SLIDE out.ome.tiff --blend exact --overlap 32
translate SLIDE out.ome.tiff --blend exact --model INSTANCE
translate SLIDE out.ome.tiff --tissue lost.geojson
translate SLIDE out.ome.tiff --tissue TEXT
translate SLIDE out.ome.tiff --mpp 0
translate SLIDE out.ome.tiff --mpp 70
translate SLIDE out.ome.tiff --series 7
translate SLIDE out.ome.tiff --page 7
translate SLIDE out.ome.tiff --seed -1
translate SLIDE no/such/out.ome.tiff --model identity
translate SLIDE SLIDE --overwrite
translate BLANK out.ome.tiff --model identity
translate UNSCALED out.ome.tiff
translate SLIDE out.ome.tiff --model identity --dry-run
translate SLIDE there.ome.tiff --model identity --dry-run
translate SLIDE good.ome.tiff --model identity --device cpu -q
translate SLIDE good.ome.tiff --model identity --device cpu -q
translate SLIDE good.ome.tiff --model identity --device cpu -q --overwrite
translate SLIDE good.ome.tiff --model identity --device cpu -q --resume
translate SLIDE resumed.ome.tiff --model identity --device cpu -q --resume
translate SLIDE resumed.ome.tiff --model identity --device cpu -q --resume
translate SLIDE resumed.ome.tiff --model counterstain --device cpu -q --resume
info
info SLIDE
info lost.svs
info TEXT
info EMPTY
info ""
info SLIDE --mpp -1
info SLIDE --series 7
tissue SLIDE mask.png
tissue SLIDE mask.png
tissue SLIDE mask.png --overwrite
tissue SLIDE mask.bmp
tissue BLANK blank.png
tissue lost.svs lost.png
register SLIDE
register SLIDE lost.svs registered
register SLIDE BLANK registered
register SLIDE SLIDE registered --landmarks lost.csv lost.csv
register SLIDE SLIDE registered --spacing-um 0
register SLIDE SLIDE there.ome.tiff
warp IHC TRANSFORM warped.ome.tiff -q
warp IHC TRANSFORM warped.ome.tiff -q
warp IHC TRANSFORM warped.ome.tiff -q --overwrite
warp IHC lost warped2.ome.tiff
warp IHC TEXT warped2.ome.tiff
warp lost.svs TRANSFORM warped2.ome.tiff
warp IHC TRANSFORM warped.png
warp IHC TRANSFORM warped2.ome.tiff --subsampling 411
warp IHC TRANSFORM warped2.ome.tiff --ihc-mpp 0
batch
batch SOURCE
batch --status lost
batch --status FOLDER
batch SOURCE out --status out
batch lost.csv out
batch FOLDER out --model identity
batch BATCH out --model identity --dry-run
batch BATCH out --model identity
batch BATCH out --model identity --dry-run --keep-going
batch BATCH out --model nonsense --dry-run
batch BATCH out --model identity --shard 3/2
batch BATCH out --model identity --shard 0/2 --slurm
batch GOODBATCH out --model identity --device cpu --dry-run
pairs
pairs MANIFEST
pairs lost.csv dataset
pairs MANIFEST dataset --dry-run --patch-size 128
pairs PARTIAL dataset --dry-run --patch-size 128
pairs MANIFEST dataset --patch-size 0
pairs --check lost
pairs --check FOLDER
pairs --check FOLDER MANIFEST
models
models list
models show
models show counterstain
models show nonsense
models show lost.safetensors
models show TEXT
models import lost.pth imported.safetensors --mpp 0.5
models import TEXT imported.safetensors --mpp 0.5
models import TEXT imported.safetensors
models import TEXT imported.pth --mpp 0.5
doctor
doctor nonsense
train
train PATCHES
train lost --out run
train lost --dry-run
train FOLDER --dry-run
train PATCHES --out run --crop-size 33
train PATCHES --out run --recipe nonsense
train PATCHES --out run --epochs 0
train PATCHES --out run --learning-rate 2
train PATCHES --out run --depth 99
train PATCHES --out run --config lost.toml
train PATCHES --out run --config TEXT
train PATCHES --out run --resume
train PATCHES --out there --mpp 0.5 --stain X --crop-size 32
train PATCHES --dry-run --crop-size 32 --device cpu
train PATCHES --dry-run --crop-size 32 --device cpu --mpp 0.5 --stain X --depth 1 --ngf 4 --ndf 4
train PATCHES --dry-run --crop-size 32 --device cpu --mpp 0.5 --stain X --group-by "(" --depth 1
evaluate
evaluate --out report
evaluate PATCHES --out report
evaluate PATCHES --model nonsense --out report
evaluate lost --model counterstain --out report
evaluate PATCHES --model counterstain --out there
evaluate PATCHES --model counterstain --out report --resamples 1
evaluate PATCHES --model counterstain --out report --split nonsense
evaluate --reference lost --virtual lost --out report
evaluate --reference PATCHES/IHC/test --virtual PATCHES/HE/train --out report
evaluate --reference-slide lost.svs --virtual-slide SLIDE --out report
evaluate --reference-slide SLIDE --out report
dataset
dataset lost
dataset FOLDER
dataset PATCHES --mpp 0.5 --workers 1 -q
dataset PATCHES --mpp 0
dataset PATCHES --out there
curves
curves lost
curves FOLDER --out curves.png
curves RUN --out curves.png -q
curves RUN --out curves.png -q
curves RUN --out curves.bmp
demo
demo TEXT
demo there --pair
"""


@pytest.fixture
def names(
    slide: Path, ihc_slide: Path, networks: dict[str, Path], transform: Path, patches: Path, slide_pairs: Path,
    trained: dict[str, tuple[Path, Ended]], tmp_path: Path,
) -> dict[str, Path]:  # fmt: skip
    """Files that the calls name in capitals."""
    folder = tmp_path / "files"
    (folder / "empty").mkdir(parents=True)
    (folder / "text.txt").write_text("nothing but text")
    (folder / "empty.svs").touch()
    (folder / "cut.svs").write_bytes(slide.read_bytes()[:5000])
    blank = np.full((256, 256, 3), 243, np.uint8)
    Image.fromarray(inputs.slide_pixels()).save(folder / "unscaled.png")
    (folder / "batch.csv").write_text(f"path\n{slide}\nlost.svs\n")
    (folder / "good.csv").write_text(f"path\n{slide}\n")
    return {
        "SLIDE": slide, "IHC": ihc_slide, "TEXT": folder / "text.txt", "EMPTY": folder / "empty.svs",
        "FOLDER": folder / "empty", "CUT": folder / "cut.svs", "BLANK": inputs.write_pixels(folder / "b.svs", blank),
        "UNSCALED": folder / "unscaled.png", "INSTANCE": networks["instance"], "TRANSFORM": transform,
        "BATCH": folder / "batch.csv", "GOODBATCH": folder / "good.csv", "SOURCE": folder / "empty",
        "MANIFEST": slide_pairs / "manifest.csv", "PARTIAL": slide_pairs / "partial.csv", "PATCHES": patches,
        "RUN": trained["variance"][0],
    }  # fmt: skip


def test_exit_codes(
    snapshot: Snapshot, run: Run, names: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "there").mkdir(parents=True)
    (work / "there" / "he.tiff").write_text("mine")
    (work / "there.ome.tiff").write_text("mine")
    monkeypatch.chdir(work)
    lines, before = [], set(work.rglob("*"))
    for call in CALLS.strip().splitlines():
        words = [re.sub(r"^([A-Z]+)(?=/|$)", lambda match: str(names.get(match[1], match[1])), word)
                 for word in shlex.split(call)]  # fmt: skip
        ended = run(*words)
        now = set(work.rglob("*"))
        new = sorted(path.relative_to(work).as_posix() for path in now - before if not _is_inside(path, now - before))
        assert before <= now, call
        assert (work / "there.ome.tiff").read_text() == "mine"
        streams = "".join(letter for letter, text in (("o", ended.out), ("e", ended.err)) if text) or "-"
        lines.append(f"{ended.code}  {streams:2}  {call}" + (f"  -> {', '.join(new)}" if new else ""))
        before = now
    snapshot.lines("exit_codes", lines)


def _is_inside(path: Path, folders: set[Path]) -> bool:
    return any(parent in folders for parent in path.parents)
