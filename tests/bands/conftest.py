"""A small slide, tiny networks, and bands small enough that there are several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from make_slides import tissue_on_glass, write_exact

import wsi2ihc
from wsi2ihc.arrays import RGBImage
from wsi2ihc.generator.checkpoint import build_network, save_checkpoint
from wsi2ihc.generator.spec import GeneratorSpec
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.slide import Slide
from wsi2ihc.translation.options import TranslateOptions

LOSSLESS = PyramidOptions(compression="deflate", tile_px=64)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much where other processes want the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: nobody cuts its power, and a busy disk takes long. Children do wait."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="session")
def picture() -> RGBImage:
    """460×430 px, tissue in the middle 300×290."""
    return tissue_on_glass(460, 430, (81, 83, 300, 290))


@pytest.fixture(scope="session")
def slide_file(picture: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as a slide whose pixels come back exactly."""
    return write_exact(tmp_path_factory.mktemp("slides") / "tissue.svs", picture)


@pytest.fixture
def slide(slide_file: Path) -> Iterator[Slide]:
    with wsi2ihc.open_slide(slide_file) as opened:
        yield opened


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny networks: "batch" is local, "instance" looks at the statistics of its window."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for norm in ("batch", "instance"):
        torch.manual_seed(7)
        spec = GeneratorSpec(depth=1, width=8, norm=norm, mpp=0.5, stain="HER2")
        network = build_network(spec)
        with torch.no_grad():  # initial weights answer with grey; these have contrast
            for weights in network.parameters():
                weights.mul_(6.0) if weights.ndim > 1 else None
        paths[norm] = folder / f"{norm}.safetensors"
        save_checkpoint(paths[norm], network, spec)
    return paths


@pytest.fixture
def make_options() -> Callable[..., TranslateOptions]:
    """Options with lossless tiles of 64 px and bands of 128 px, and whatever else is asked for."""

    def make(**changes: Any) -> TranslateOptions:
        chosen = {"pyramid": LOSSLESS, "band_px": 128, "device": "cpu", "precision": "fp32", **changes}
        return TranslateOptions(**chosen)

    return make
