"""Contact sheet of tissue detection on a folder of development images, with metrics if there is a reference mask.

    python benchmarks/tissue_sheet.py DATA OUT.png

DATA holds ``thumbs``, ``tiles``, ``registration`` and ``slides``. Thumbnails do not state their resolution; the one
assumed for each is in its caption. Tiles are far smaller than a slide, which is not what detection is meant for: there,
one speck or its margin covers a large fraction of the image. In the sheet, background is darkened.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wsi2ihc.geometry import BoolImage, RGBImage
from wsi2ihc.slide import open_slide, overview_grid, read_overview
from wsi2ihc.tissue import find_tissue, green_excess, staining_warning

MPP = {
    "127-rgb.png": 20.0,
    "21-rgb.png": 20.0,
    "424-rgb.png": 20.0,
    "498-rgb.png": 20.0,
    "diagnostic-slide-thumb-rgb.png": 30.0,
    "hs2p-slide.jpg": 4.03,
    "pen_red.png": 30.0,
    "pink-and-purple-slide.png": 30.0,
    "slide-pen.png": 30.0,
    "Rat-Kidney_HE.jpg": 20.0,
    "Rat-Kidney_PanCytokeratin.jpg": 20.0,
    "Izd2-29-041-w35_HE.jpg": 8.0,
    "Izd2-29-041-w35_proSPC.jpg": 8.0,
    "tissue-level2-3000-7666-7096-11763.png": 2.0,
    "kidney-48-5.tif": 8.0,
    "TCGA-CR-7395-01A-01-TS1.svs": 0.5,
    "boxes.tiff": 8.0,
}
TILE_MPP = 0.5
PANEL_PX, COLUMNS, CAPTION_PX = 520, 4, 22


@dataclass(frozen=True, slots=True)
class Case:
    """Read one image and its µm per px (from the file, or assumed)."""

    name: str
    image: RGBImage
    mpp: float
    assumed: bool


def images(data: Path) -> Iterator[Case]:
    for folder in ("thumbs", "tiles", "registration/rat-kidney_", "registration/lesions_"):
        for path in sorted((data / folder).iterdir()):
            if path.suffix in (".png", ".jpg") and "penmask" not in path.name:
                image = cv2.imread(str(path), cv2.IMREAD_COLOR)
                yield Case(path.name, np.ascontiguousarray(image[..., ::-1]), MPP.get(path.name, TILE_MPP), True)


def slides(data: Path) -> Iterator[Case]:
    names = ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "kidney-48-5.tif", "dicom_jpeg/wsm_jpeg.dcm",
             "dicom_jp2k/wsm_jp2k.dcm", "boxes.tiff", "small_16x16.svs"]  # fmt: skip
    for name in names:
        assumed = MPP.get(name)
        with open_slide(data / "slides" / name, mpp=assumed) as slide:
            mpp = slide.info.mpp
            assert mpp is not None
            bounds = slide.info.bounds
            downsample = max(1.0, min(8 / min(mpp), min(bounds.width, bounds.height) / 512))
            grid = overview_grid(slide.info, downsample)
            yield Case(Path(name).name, read_overview(slide, grid, (255, 255, 255)), grid.mpp[0], assumed is not None)


def panel(case: Case, tissue: BoolImage) -> RGBImage:
    height, width = case.image.shape[:2]
    scale = PANEL_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(case.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    mask = cv2.resize(tissue.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    marked = np.where(mask[..., np.newaxis] > 0, image, image // 5 * 2).astype(np.uint8)
    edges, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(marked, edges, -1, (0, 160, 0), 1)
    pair = np.zeros((PANEL_PX + CAPTION_PX, 2 * PANEL_PX, 3), np.uint8)
    pair[CAPTION_PX : CAPTION_PX + size[1], : size[0]] = image
    pair[CAPTION_PX : CAPTION_PX + size[1], PANEL_PX : PANEL_PX + size[0]] = marked
    text = f"{case.name}  {case.mpp:.3g} um/px{' assumed' if case.assumed else ''}  tissue {tissue.mean():.1%}"
    cv2.putText(pair, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return pair


def reference_figures(data: Path, name: str, tissue: BoolImage) -> str:
    if name == "hs2p-slide.jpg":
        truth = cv2.imread(str(data / "thumbs/hs2p-tissue-mask-auto.tif"), cv2.IMREAD_UNCHANGED) > 0
        both = np.count_nonzero(tissue & truth)
        iou = both / np.count_nonzero(tissue | truth)
        return f"against its mask: recall {both / np.count_nonzero(truth):.4f}, intersection over union {iou:.4f}"
    if name == "pen_red.png":
        pen = cv2.imread(str(data / "thumbs/pen_red_penmask.png"), cv2.IMREAD_UNCHANGED) > 0
        share = np.count_nonzero(pen & ~tissue) / np.count_nonzero(pen)
        return f"against its pen mask: {share:.3f} of the pen left out"
    return ""


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    panels: list[RGBImage] = []
    for case in (*images(data), *slides(data)):
        find_tissue(case.image, case.mpp)
        start = time.perf_counter()
        tissue, background, warnings = find_tissue(case.image, case.mpp)
        milliseconds = 1000 * (time.perf_counter() - start)
        excess = green_excess(case.image, tissue, background)
        stain = "-" if excess is None else f"{excess:.2f}"
        alarm = "NOT H&E" if staining_warning(case.image, tissue, background) else ""
        print(f"{case.name:42} {case.mpp:6.2f} µm/px  tissue {tissue.mean():6.1%}  background {background!s:15}  "
              f"{milliseconds:4.0f} ms  green excess {stain:5} {alarm}")  # fmt: skip
        for line in (*warnings, reference_figures(data, case.name, tissue)):
            if line:
                print(f"    {line}")
        panels.append(panel(case, tissue))
    per_row = COLUMNS // 2
    while len(panels) % per_row:
        panels.append(np.zeros_like(panels[0]))
    rows = [np.hstack(panels[index : index + per_row]) for index in range(0, len(panels), per_row)]
    cv2.imwrite(str(out), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
