"""Names that XML and JSON cannot store unchanged: control characters, bytes that are not UTF-8, U+FFFE and U+FFFF."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import tifffile
from make_slides import write_exact

import wsi2ihc
from wsi2ihc.geometry import RGBImage
from wsi2ihc.registration.register import RegistrationOptions, register
from wsi2ihc.registration.report import report_of, write_registration
from wsi2ihc.registration.transform import frame_of, identity
from wsi2ihc.registration.transform_io import load_transform
from wsi2ihc.registration.warped_slide import WarpOptions, warp_slide
from wsi2ihc.slide import SlideInfo
from wsi2ihc.tissue import detect_tissue, save_mask
from wsi2ihc.translation.options import TranslateOptions

ODD = "\x01\x1f\x7f\x85\udcff\ud800\ufffe\uffff"
ODD_FILE = "\x01\x1f\x7f\x85\udcff\ufffe\uffff\r\n"
ODD_OUTPUT = ODD_FILE.replace("\udcff", "")
"""Outputs have names that are UTF-8."""

NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@pytest.fixture(scope="module")
def odd_slide(image: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / f"f{ODD_FILE}"
    folder.mkdir()
    path = folder / f"s{ODD_FILE}.svs"
    try:
        write_exact(folder / "s.svs", image).rename(path)
    except OSError:
        pytest.skip("the file system does not allow such names")
    return path


def checked_description(path: Path) -> str:
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages[0].tags["ImageDescription"].value
    texts = [part for element in ET.fromstring(text).iter() for part in (element.text, *element.attrib.values())]
    whole = "\n".join(filter(None, texts))
    assert not NOT_IN_XML.search(whole)
    return whole


@pytest.mark.parametrize("resume", [False, True])
def test_any_name_of_slide_mask_and_output(odd_slide: Path, tmp_path: Path, resume: bool) -> None:
    mask, out = odd_slide.parent / f"m{ODD_FILE}.png", tmp_path / f"o{ODD_OUTPUT}.ome.tiff"
    with wsi2ihc.open_slide(odd_slide) as slide:
        save_mask(detect_tissue(slide), mask.with_name("m.png"))
        mask.with_name("m.png").rename(mask)
        options = TranslateOptions(tissue=mask, resume=resume)
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options)
        assert json.loads(out.with_name(f"{out.name}.json").read_bytes())["source"]["name"] == odd_slide.name
    assert "s\x7f\x85\n.svs" in checked_description(out)


@pytest.mark.parametrize("field", ["name", "version", "stain", "channel_name", "description", "license"])
def test_any_text_of_a_model(slide_file: Path, tmp_path: Path, field: str) -> None:
    model = dataclasses.replace(wsi2ihc.load_model("identity"), **{field: f"odd{ODD}"})
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, model, tmp_path / "out.ome.tiff", TranslateOptions())
    text = checked_description(tmp_path / "out.ome.tiff")
    assert field == "license" or "odd\x7f\x85" in text


@pytest.mark.parametrize("field", ["name", "vendor", "reader", "quickhash", "mpp_source"])
def test_any_text_of_a_slide(slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    with wsi2ihc.open_slide(slide_file) as slide:
        info: SlideInfo = dataclasses.replace(slide.info, **{field: f"odd{ODD}"})
        monkeypatch.setattr(slide, "_info", info)
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", TranslateOptions())
    checked_description(tmp_path / "out.ome.tiff")


def test_any_name_of_registered_slides(odd_slide: Path, tmp_path: Path) -> None:
    out = tmp_path / f"o{ODD_OUTPUT}.ome.tiff"
    with wsi2ihc.open_slide(odd_slide) as slide:
        frame = frame_of(slide.info)
        found = register(slide, slide)
        facts = report_of(frame, frame, RegistrationOptions(), found, None).to_json()
        write_registration(tmp_path / "registration", slide, slide, found.transform, facts)
        saved = load_transform(tmp_path / "registration")
        assert saved.fixed is not None
        assert saved.fixed.name == odd_slide.name
        other = dataclasses.replace(frame, name=f"odd{ODD}", quickhash=f"odd{ODD}")
        warp_slide(slide, dataclasses.replace(identity(), fixed=other, moving=frame), out, WarpOptions())
    assert "odd\x7f\x85" in checked_description(out)
    report = json.loads(out.with_name(f"{out.name}.json").read_bytes())
    assert (report["source"]["name"], report["fixed"]["name"]) == (odd_slide.name, f"odd{ODD}")
