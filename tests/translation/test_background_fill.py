"""Untranslated area has the color of the output for background beside tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from make_slides import tissue_on_background, write_exact, write_slide
from torch import nn

import wsi2ihc
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.networks import ResnetGenerator, UnetGenerator
from wsi2ihc.models.registry import Model
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.options import TranslateOptions

LOSSLESS = PyramidOptions(compression="deflate", tile_px=128)


@pytest.fixture(scope="module")
def image() -> RGBImage:
    """640×576 px, tissue in the middle 300×260."""
    return tissue_on_background(640, 576, (160, 150, 300, 260))


@pytest.fixture(scope="module")
def slide_file(image: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exact(tmp_path_factory.mktemp("slides") / "tissue.svs", image)


def with_norms(module: nn.Module, kind: str) -> nn.Module:
    """Replace all norms of a network."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.InstanceNorm2d):
            count = child.num_features
            made: nn.Module
            if kind == "none":
                made = nn.Identity()
            elif kind == "batch":
                made = nn.BatchNorm2d(count)
            elif kind == "plain batch":
                made = nn.BatchNorm2d(count, affine=False)
            elif kind == "group":
                made = nn.GroupNorm(2, count)
            else:
                made = nn.InstanceNorm2d(count, affine=kind == "affine instance")
            for parameter in made.parameters():
                nn.init.normal_(parameter, 1.0 if parameter is made.weight else 0.0, 0.2)
            setattr(module, name, made)
        else:
            with_norms(child, kind)
    return module


def generator(architecture: str, norm: str) -> Model:
    torch.manual_seed(4)
    module: nn.Module
    if architecture == "unet":
        module = UnetGenerator(5, 4, "instance", dropout=False)
    elif architecture == "pixelwise":
        module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Tanh())
    else:
        upsampling = "bilinear" if norm == "batch" else "transposed"
        module = ResnetGenerator(int(architecture[-1]), 4, "instance", dropout=False, upsampling=upsampling)
    module = with_norms(module, norm).eval()
    for parameter in module.parameters():  # with initial weights the output is gray
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0.0, 1.2 / parameter[0].numel() ** 0.5)
    return Model(f"{architecture}-{norm}", "0", "HER2", "HER2 (virtual)", 0.5, "", "", module=module)


@pytest.mark.parametrize("norm", ["none", "batch", "plain batch"])
@pytest.mark.parametrize("architecture", ["resnet-6", "resnet-9", "unet", "pixelwise"])
def test_a_local_model_fills_with_its_output_for_background(
    slide_file: Path, tmp_path: Path, architecture: str, norm: str
) -> None:
    filled, whole = tmp_path / "filled.ome.tiff", tmp_path / "whole.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        for out, tissue in ((filled, "auto"), (whole, "none")):
            options = TranslateOptions(pyramid=LOSSLESS, device="cpu", core_px=256, tissue=tissue)
            report = wsi2ihc.translate(slide, generator(architecture, norm), out, options)
    background = np.asarray(tifffile.imread(whole))[32:64, 32:-32].reshape(-1, 3)  # a multiple of the stride
    assert np.abs(background.mean(axis=0) - report.fill).max() <= 2
    assert (np.asarray(tifffile.imread(filled))[:8, :8] == report.fill).all()


@pytest.mark.parametrize("norm", ["instance", "affine instance", "group"])
@pytest.mark.parametrize("architecture", ["resnet-6", "resnet-9", "unet", "pixelwise"])
def test_a_model_with_window_statistics_fills_with_its_output_for_background_beside_tissue(
    slide_file: Path, image: RGBImage, tmp_path: Path, architecture: str, norm: str
) -> None:
    out, options = tmp_path / "out.ome.tiff", TranslateOptions(pyramid=LOSSLESS, device="cpu", core_px=256)
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, generator(architecture, norm), out, options)
    result = np.asarray(tifffile.imread(out)).astype(int)
    ring = np.zeros(image.shape[:2], np.bool_)
    ring[110:450, 120:500] = True
    ring[134:426, 144:476] = False
    beside = np.median(result[ring], axis=0)
    assert np.abs(beside - report.fill).max() <= 25
    assert (result[:8, :8] == report.fill).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("blend", ["exact", "overlap"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_fill_hardly_depends_on_the_strategy(
    slide_file: Path, tmp_path: Path, precision: str, blend: str, norm: str
) -> None:
    statistics = "slide" if norm == "instance" and blend == "exact" else "trained"
    fills = []
    for resume, how in ((False, precision), (True, precision), (False, "fp32")):
        options = TranslateOptions(
            pyramid=LOSSLESS,
            device="cpu",
            core_px=256,
            blend=blend,
            precision=how,
            statistics=statistics,
            resume=resume,
        )  # type: ignore[arg-type]
        with wsi2ihc.open_slide(slide_file) as slide:
            out = tmp_path / f"{len(fills)}.ome.tiff"
            fills.append(wsi2ihc.translate(slide, generator("resnet-6", norm), out, options).fill)
    assert fills[0] == fills[1]
    np.testing.assert_allclose(fills[0], fills[2], atol=4)


@pytest.mark.parametrize("everything", [True, False])
def test_a_slide_without_background_gets_a_fill_from_synthetic_background(tmp_path: Path, everything: bool) -> None:
    tissue = synthetic_tissue(400, 300, seed=3)
    path = write_slide(tmp_path / "full.svs", tissue, style="aperio", compression="deflate", tile=256, mpp=0.5)
    options = TranslateOptions(tissue="none" if everything else "auto", pyramid=LOSSLESS, device="cpu")
    with wsi2ihc.open_slide(path) as slide:
        report = wsi2ihc.translate(slide, generator("resnet-6", "instance"), tmp_path / "out.ome.tiff", options)
    assert report.fill != (128, 128, 128)
