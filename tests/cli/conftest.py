"""What commands read: small slides, weights, patches, a training run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "pairs"))
from make_slide_pairs import row, write_pairs
from tiny_runs import tiny_pairs

from wsi2ihc.models.networks import ResnetGenerator
from wsi2ihc.registration.transform import Transform, frame_of
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.slide import open_slide
from wsi2ihc.training.history import RunRecord


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input of each kind; it stays as it is."""
    folder = write_pairs(tmp_path_factory.mktemp("inputs"), 2)
    with open_slide(folder / "he0.tif") as he, open_slide(folder / "ihc0.tif") as ihc:
        save_transform(folder / "placed", Transform(np.eye(2, 3), None, frame_of(he.info), frame_of(ihc.info)))
    torch.save(ResnetGenerator(1, 2).state_dict(), folder / "net.pth")
    (folder / "empty.csv").write_text(",".join(row(0)) + "\n")
    tiny_pairs(folder / "patches")
    for path in (folder / "patches" / "test").iterdir():
        shutil.copyfile(folder / "patches" / "val" / "v0.png", path)
    for name in ("real", "virtual"):
        (folder / name).mkdir()
        pixels = np.random.default_rng(len(name)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "0.png")
    (folder / "slides").mkdir()
    (folder / "slides" / "a.tif").symlink_to(folder / "he0.tif")
    with RunRecord(folder / "run", 0, 0, False, step_names=("generator",), validation_names=("psnr",)) as record:
        for step in range(1, 9):
            record.step(step, 1, {"generator": 1 / step})
        record.validation(1, 8, {"psnr": 20.0})
    return folder
