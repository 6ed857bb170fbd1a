"""A command succeeds when it is repeated after it was killed while publishing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from band_processes import context, run

import wsi2ihc
from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.output import is_preview_of
from wsi2ihc.translation.output_files import is_report_of
from wsi2ihc.translation.report import TranslateReport


def _killed(suffix: str, arguments: list[str]) -> None:
    """Run the command up to the publication of a file whose name ends with ``suffix``, or of a folder."""
    import wsi2ihc.atomic_files
    import wsi2ihc.translation.resume
    from wsi2ihc.cli.main import main

    real = wsi2ihc.atomic_files._publish

    def publish(partial: Path, handle: int, path: Path, overwrite: bool) -> None:
        if path.name.endswith(suffix):
            os._exit(9)
        real(partial, handle, path, overwrite)

    wsi2ihc.atomic_files._publish = publish
    wsi2ihc.translation.resume.publish_folder = lambda *_: os._exit(9)
    main(arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def command(slide_file: Path, out: Path, *more: str) -> list[str]:
    chosen = ["--model", "identity", "--tile-size", "256", "--preview", str(out.with_name("preview.png")), "-q"]
    return ["translate", str(slide_file), str(out), *chosen, *more]


@pytest.mark.parametrize(
    ("suffix", "at"), [("tiff", ".ome.tiff"), ("tiff", ".json"), ("tiff", ".png"), ("zarr", ".ome.zarr")]
)
@pytest.mark.parametrize("again", ["", "--resume"])
def test_the_same_command_succeeds_after_a_kill_while_publishing(
    slide_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, suffix: str, at: str, again: str
) -> None:
    out = tmp_path / f"out.ome.{suffix}"
    arguments = command(slide_file, out)
    killed = context().Process(target=_killed, args=(at, arguments))
    killed.start()
    killed.join(120)
    assert killed.exitcode == 9
    assert not out.exists()
    log = tmp_path_factory.mktemp("log") / "log"
    assert run([*arguments[1:], *([again] if again else [])], log) == 0, log.read_text()
    assert names(tmp_path) == [out.name, f"{out.name}.json", "preview.png"]


def options(tmp_path: Path) -> TranslateOptions:
    return TranslateOptions(pyramid=PyramidOptions(tile_px=256), preview=tmp_path / "preview.png")


def test_a_failed_rename_of_the_output_leaves_no_files(
    slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wsi2ihc.atomic_files

    real = wsi2ihc.atomic_files._publish

    def publish(partial: Path, handle: int, path: Path, overwrite: bool) -> None:
        if path.name == "out.ome.tiff":
            assert names(tmp_path)[-2:] == ["out.ome.tiff.json", "preview.png"]
            raise OutputError("the disk is gone")
        real(partial, handle, path, overwrite)

    monkeypatch.setattr("wsi2ihc.atomic_files._publish", publish)
    with wsi2ihc.open_slide(slide_file) as slide, pytest.raises(OutputError, match="the disk is gone"):
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", options(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_failed_preview_keeps_the_output(slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("wsi2ihc.translation.output.write_preview", full)
    out = tmp_path / "out.ome.tiff"
    with (
        wsi2ihc.open_slide(slide_file) as slide,
        pytest.raises(OutputError, match=r"preview.*out\.ome\.tiff is complete"),
    ):
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options(tmp_path))
    assert out.exists()


@pytest.mark.parametrize("name", ["out.ome.tiff.json", "preview.png"])
@pytest.mark.parametrize("content", [b"precious", b"{}", b'{"output_name": "out.ome.tiff"}', b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_not_taken_for_leftovers_of_a_killed_run(
    slide_file: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with wsi2ihc.open_slide(slide_file) as slide, pytest.raises(OutputExistsError):
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", options(tmp_path))
    assert (tmp_path / name).read_bytes() == content


def test_reports_and_previews_identify_their_output(slide_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options(tmp_path))
        quickhash = slide.info.quickhash

    def is_translation(file: Path, name: str, quickhash: str) -> bool:
        return is_report_of(file, TranslateReport, name, quickhash)

    for is_of, file in ((is_translation, tmp_path / "out.ome.tiff.json"), (is_preview_of, tmp_path / "preview.png")):
        assert is_of(file, "out.ome.tiff", quickhash)
        assert not is_of(file, "other.ome.tiff", quickhash)
        assert not is_of(file, "out.ome.tiff", "another")
        assert not is_of(tmp_path / "missing", "out.ome.tiff", quickhash)
