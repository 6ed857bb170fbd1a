"""A file that is named and is not there is an error, whichever argument or option names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_slides import halves, write_slide

from wsi2ihc.cli.main import main
from wsi2ihc.demo import synthetic_tissue

GONE = "gone/x"


@pytest.fixture
def _slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("he.tif", 1), ("ihc.tif", 2)):
        write_slide(tmp_path / name, halves(synthetic_tissue(256, 256, seed=seed), 2))


@pytest.mark.usefixtures("_slides")
@pytest.mark.parametrize(
    "arguments",
    [
        ("info", GONE),
        ("translate", GONE, "o.ome.tiff"),
        ("translate", "he.tif", "o.ome.tiff", "--model", GONE),
        ("translate", "he.tif", "o.ome.tiff", "--model", "identity", "--tissue", f"{GONE}.png"),
        ("translate", "he.tif", "o.ome.tiff", "--model", "identity", "--preview", f"{GONE}.png"),
        ("register", "he.tif", "ihc.tif", "r", "--landmarks", GONE, GONE),
        ("warp", "ihc.tif", GONE, "w.ome.tiff"),
        ("pairs", f"{GONE}.csv", "out"),
        ("pairs", "--check", GONE),
        ("train", GONE, "--dry-run"),
        ("train", ".", "--dry-run", "--config", f"{GONE}.toml"),
        ("evaluate", GONE, "--model", "identity", "--out", "e"),
        ("evaluate", "--reference", GONE, "--virtual", ".", "--out", "e"),
        ("evaluate", "--reference-slide", "ihc.tif", "--virtual-slide", "he.tif", "--transform", GONE, "--out", "e"),
        ("evaluate", "--reference-slide", "ihc.tif", "--virtual-slide", "he.tif", "--he", GONE, "--out", "e"),
        ("dataset", GONE),
        ("models", "show", GONE),
        ("models", "import", GONE, "m.safetensors", "--mpp", "0.5"),
        ("batch", GONE, "b"),
        ("batch", "--status", GONE),
    ],
    ids=" ".join,
)
def test_a_missing_file_is_an_error_whatever_names_it(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert "unexpected" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"he.tif", "ihc.tif"}
