"""``info`` lists the images of a file, and the commands read the one that is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tifffile

from wsi2ihc.cli.main import main
from wsi2ihc.demo import synthetic_tissue


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "two.tif"
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None, "compression": "deflate"}
    with tifffile.TiffWriter(path) as tiff:
        for side, mpp in ((130, 8.0), (600, 0.5)):
            tiff.write(
                synthetic_tissue(side, side, seed=side), resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER", **options,
            )  # fmt: skip
    return path


def test_info_lists_the_images(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "info", slide)
    assert code == 0
    assert "  series 0       130×130 px, 8 µm/px, page 0\n" in text
    assert "  series 1       600×600 px, 0.5 µm/px, page 1 (the slide)\n" in text
    assert "  note           The file holds another image, not used here (series 0: 130×130 px)" in text
    code, text, _ = run(capsys, "info", slide, "--json", "--series", "0")
    facts = json.loads(text)
    assert facts["size"] == {"width": 130, "height": 130}
    assert [(image["series"], image["chosen"]) for image in facts["images"]] == [(0, True), (1, False)]


def test_the_other_images_are_a_note_of_a_translation(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(capsys, "translate", slide, tmp_path / "a.ome.tiff", "--model", "identity", "--tissue", "none")
    assert code == 0
    assert "The file holds another image" in text
    assert "600×600 px" in text
    code, text, error = run(capsys, "translate", slide, tmp_path / "b.ome.tiff", "--series", "5")
    assert code in (1, 2)
    assert "--series 5: the file has series 0 to 1" in error
    assert not (tmp_path / "b.ome.tiff").exists()


def test_the_mask_of_a_chosen_image(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, "tissue", slide, tmp_path / "mask.png", "--page", "1")
    assert code == 0
