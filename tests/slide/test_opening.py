"""Which reader opens a file, and what happens to files that are not slides."""

from __future__ import annotations

import io
import logging
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
from make_slides import halves, texture, write_slide

from wsi2ihc.errors import MissingResolutionError, OptionError, SlideNotFoundError, UnreadableSlideError, Wsi2IhcError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import known_mpp, open_slide, overview_grid, read_overview, srgb_profile
from wsi2ihc.slide.readers.base import without_folders

PYRAMID = halves(texture(500, 400), 3)


class TestWhichReader:
    def test_openslide_first(self, tmp_path: Path) -> None:
        with open_slide(write_slide(tmp_path / "a.tif", PYRAMID)) as slide:
            assert slide.info.reader == "openslide"

    @pytest.mark.parametrize("compression", ["jpeg", "deflate"])
    def test_tiffslide_for_levels_in_subifds(self, tmp_path: Path, compression: str) -> None:
        """As this program's own output has them; OpenSlide sees the first level only."""
        path = write_slide(tmp_path / "a.ome.tiff", PYRAMID, subifds=True, compression=compression, bigtiff=True)
        with open_slide(path) as slide:
            assert slide.info.reader == "tiffslide"
            assert [level.downsample for level in slide.info.levels] == [1, 2, 4]
            pixels = slide.read_level(2, Region(0, 0, 125, 100))
            assert np.abs(pixels.astype(int) - PYRAMID[2]).mean() < 10

    def test_tiffslide_for_strips(self, tmp_path: Path) -> None:
        with open_slide(write_slide(tmp_path / "a.tif", PYRAMID, tile=None, compression="deflate")) as slide:
            assert slide.info.reader == "tiffslide"
            np.testing.assert_array_equal(slide.read_level(1, Region(0, 0, 250, 200)), PYRAMID[1])

    def test_tiffslide_for_addresses(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "a.tif", PYRAMID, compression="deflate")
        fsspec.filesystem("memory").pipe("/folder/a.tif", path.read_bytes())
        with open_slide("memory://folder/a.tif") as slide:
            assert slide.info.reader == "tiffslide"
            assert slide.info.name == "a.tif"
            assert slide.path == "memory://folder/a.tif"
            assert slide.info.changed_at is None
            np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 400)), PYRAMID[0])
            local = open_slide(path)
            assert slide.info.quickhash.startswith("sha256:")
            assert local.info.quickhash != slide.info.quickhash  # OpenSlide has a hash of its own
            local.close()

    @pytest.mark.parametrize("kind", [str, Path, os.fspath])
    def test_kinds_of_paths(self, tmp_path: Path, kind: type) -> None:
        with open_slide(kind(write_slide(tmp_path / "a.tif", PYRAMID))) as slide:
            assert slide.info.name == "a.tif"

    def test_importing_takes_neither_torch_nor_zarr(self) -> None:
        code = "import sys, wsi2ihc.slide; print(sorted({'torch', 'zarr', 'tiffslide'} & set(sys.modules)))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "[]"


class TestFacts:
    def test_stated_resolution(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "a.tif", PYRAMID, mpp=0.5)
        with open_slide(path, mpp=0.25) as slide:
            assert (slide.info.mpp, slide.info.mpp_source) == ((0.25, 0.25), "stated")
            assert any("replaces 0.5" in problem for problem in slide.info.problems)
        with open_slide(path, mpp=(0.5, 0.25)) as slide:
            assert slide.info.mpp == (0.5, 0.25)
        with pytest.raises(OptionError, match="--mpp"):
            open_slide(path, mpp=-1)
        with pytest.raises(OptionError, match=r"^--ihc-mpp -1"):
            open_slide(path, mpp=-1, mpp_option="--ihc-mpp")

    @pytest.mark.parametrize("how", [{"dpi": 72}, {"dpi": 96}, {"mpp": None}])
    def test_no_resolution(self, tmp_path: Path, how: dict[str, float | None]) -> None:
        for name, more in (("a.tif", {}), ("b.tif", {"subifds": True})):
            with open_slide(write_slide(tmp_path / name, PYRAMID, **how, **more)) as slide:
                assert slide.info.mpp is None
                assert slide.info.mpp_source == ""
                assert any("--mpp" in problem for problem in slide.info.problems)
            with open_slide(tmp_path / name, mpp_option="--ihc-mpp") as slide:
                assert any("--ihc-mpp" in problem for problem in slide.info.problems)
                with pytest.raises(MissingResolutionError, match=f"^{name}.* give it with --ihc-mpp"):
                    known_mpp(slide.info)

    def test_resolution_of_aperio(self, tmp_path: Path) -> None:
        with open_slide(write_slide(tmp_path / "a.svs", PYRAMID, style="aperio", mpp=0.499)) as slide:
            assert (slide.info.mpp, slide.info.mpp_source) == ((0.499, 0.499), "slide")
            assert slide.info.magnification == 20
            assert slide.info.problems == ()
        with open_slide(write_slide(tmp_path / "b.svs", PYRAMID, style="aperio", mpp=None)) as slide:
            assert slide.info.mpp is None

    @pytest.mark.parametrize("subifds", [False, True])
    def test_resolution_and_magnification_of_ome_tiff(self, tmp_path: Path, subifds: bool) -> None:
        description = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="40.0"/></Instrument>'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="500" SizeY="400" '
            'SizeC="3" SizeZ="1" SizeT="1" Interleaved="true" PhysicalSizeX="0.46" PhysicalSizeY="0.46">'
            '<Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
        )
        path = write_slide(
            tmp_path / "a.ome.tiff", PYRAMID, subifds=subifds, description=description, mpp=None, bigtiff=True
        )
        with open_slide(path) as slide:
            assert slide.info.reader == ("tiffslide" if subifds else "openslide")
            assert (slide.info.mpp, slide.info.mpp_source) == ((0.46, 0.46), "slide")
            assert slide.info.magnification == 40
            assert len(slide.info.levels) == 3

    def test_profile(self, tmp_path: Path) -> None:
        for name, subifds in (("a.tif", False), ("b.tif", True)):
            path = write_slide(tmp_path / name, PYRAMID, icc_profile=srgb_profile(), subifds=subifds)
            with open_slide(path) as slide:
                assert slide.info.icc_profile == srgb_profile()

    def test_broken_profile(self, tmp_path: Path) -> None:
        for name, subifds in (("a.tif", False), ("b.tif", True)):
            path = write_slide(tmp_path / name, PYRAMID, icc_profile=b"no profile at all" * 20, subifds=subifds)
            with open_slide(path) as slide:
                assert slide.info.icc_profile is None
                assert any("profile" in problem for problem in slide.info.problems)

    def test_identity_does_not_depend_on_the_path(self, tmp_path: Path) -> None:
        hashes = set()
        for name in ("a.tif", "b.tif"):
            for subifds in (False, True):
                with open_slide(write_slide(tmp_path / name, PYRAMID, subifds=subifds)) as slide:
                    hashes.add(slide.info.quickhash)
        assert len(hashes) == 2

    def test_missing_tiles_are_remarked_on(self, tmp_path: Path) -> None:
        with open_slide(write_slide(tmp_path / "a.tif", PYRAMID, tile=128, missing={(0, 0, 0), (0, 1, 1)})) as slide:
            assert any("Missing tiles: 2 of 16" in problem for problem in slide.info.problems)


def refused(path: Path | str, kind: type[Wsi2IhcError] = UnreadableSlideError) -> str:
    """The message with which a path is refused; one line."""
    with pytest.raises(kind) as caught:
        open_slide(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


class TestNoSlides:
    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in refused(tmp_path / "none.svs", SlideNotFoundError)
        with pytest.raises(FileNotFoundError):
            open_slide(tmp_path / "none.svs")

    def test_folder(self, tmp_path: Path) -> None:
        assert "this is a folder" in refused(tmp_path)

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.svs").touch()
        assert "a.svs: the file is empty" in refused(tmp_path / "a.svs")

    @pytest.mark.parametrize("content", [b"text\n", b"II*\0", b"MM\0*", b"II+\0", b"\x89PNG\r\n\x1a\n", bytes(4000)])
    def test_other_content(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.svs").write_bytes(content)
        assert refused(tmp_path / "a.svs").startswith("a.svs: ")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_pipes_do_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.svs")
        assert "not a regular file" in refused(tmp_path / "pipe.svs")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(tmp_path / "s"))
            assert "not a regular file" in refused(tmp_path / "s")

    def test_not_permitted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_slide(tmp_path / "a.tif", PYRAMID)

        def denied(*_: object, **__: object) -> io.BytesIO:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", denied)
        assert refused(path).startswith("a.tif: it cannot be opened (Permission denied)")

    def test_absurd_path(self) -> None:
        assert "cannot be opened" in refused("a\0b")
        with pytest.raises(UnreadableSlideError, match="cannot be opened"):
            open_slide("a" * 5000)

    @pytest.mark.parametrize("address", ["memory://folder/none.tif", "nosuchprotocol://a.tif", "memory://text.tif"])
    def test_addresses(self, address: str) -> None:
        fsspec.filesystem("memory").pipe("/text.tif", b"text")
        refused(address, SlideNotFoundError if "none" in address else UnreadableSlideError)

    def test_the_query_of_an_address_is_not_repeated(self) -> None:
        assert "secret" not in refused("nosuchprotocol://host/a.tif?key=secret")

    @pytest.mark.parametrize("tile", [128, None])
    def test_other_pixels(self, tmp_path: Path, tile: int | None) -> None:
        path = tmp_path / "a.tif"
        layout = {"tile": (tile, tile)} if tile else {}
        for image, photometric in (
            (PYRAMID[0][..., 0], "minisblack"),
            (PYRAMID[0].astype(np.uint16), "rgb"),
            (PYRAMID[0][..., 0].astype(np.float32), "minisblack"),
        ):
            tifffile.imwrite(path, image, photometric=photometric, **layout)
            assert "not 8-bit RGB" in refused(path)

    def test_planes(self, tmp_path: Path) -> None:
        """RGB stored plane by plane is still RGB."""
        path = tmp_path / "a.tif"
        planes = PYRAMID[0].transpose(2, 0, 1)
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", tile=(128, 128))
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 400)), PYRAMID[0])

    def test_one_huge_strip(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path) as tiff:
            data = (b"" for _ in range(1))
            tiff.write(data, shape=(20_000, 20_000, 3), dtype=np.uint8, photometric="rgb", compression="deflate",
                       rowsperstrip=20_000)  # fmt: skip
        assert "pyramidal TIFF" in refused(path)


class TestDamage:
    """Nothing but a slide or one of our errors, no noise, no endless loop, no memory beyond reason."""

    @pytest.fixture(autouse=True)
    def quiet(self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        yield
        assert [record.getMessage() for record in caplog.records] == []
        assert [line for line in capfd.readouterr().err.splitlines() if "OpenSlide-WARNING" not in line and line] == []

    @pytest.fixture
    def slides(self, tmp_path: Path) -> list[bytes]:
        profile = srgb_profile()
        files = [
            write_slide(tmp_path / "a", PYRAMID, tile=128),
            write_slide(tmp_path / "b", PYRAMID, style="aperio", photometric="rgb", tile=128, icc_profile=profile),
            write_slide(tmp_path / "c", PYRAMID, compression="deflate", tile=128, subifds=True, bigtiff=True),
            write_slide(tmp_path / "d", PYRAMID, compression="deflate", tile=None),
        ]
        return [file.read_bytes() for file in files]

    def try_it(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        text = path.name
        try:
            with open_slide(path) as slide:
                for level, facts in enumerate(slide.info.levels):
                    slide.read_level(level, Region(-5, -5, 60, 60))
                    slide.read_level(level, Region(facts.size.width - 30, facts.size.height - 30, 60, 60))
                if slide.info.size.area_px < 10**9:
                    longest = max(slide.info.size.width, slide.info.size.height)
                    read_overview(slide, overview_grid(slide.info, max(1, longest / 200)))
        except Wsi2IhcError as error:
            text, outcome = str(error), type(error).__name__
        else:
            outcome = "read"
        assert path.name in text
        assert "\n" not in text
        return outcome

    def test_random_headers(self, tmp_path: Path) -> None:
        rng = random.Random(1)
        starts = [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"]
        outcomes = {
            self.try_it(tmp_path / "a.tif", rng.choice(starts) + rng.randbytes(rng.randrange(800))) for _ in range(80)
        }
        assert "read" not in outcomes

    def test_truncated_copies(self, tmp_path: Path, slides: list[bytes]) -> None:
        rng = random.Random(2)
        for content in slides:
            for _ in range(12):
                self.try_it(tmp_path / "a.tif", content[: rng.randrange(len(content))])

    def test_changed_tags(self, tmp_path: Path, slides: list[bytes]) -> None:
        rng = random.Random(3)
        outcomes = set()
        for content in slides:
            with tifffile.TiffFile(io.BytesIO(content)) as tiff:
                places = [tag.offset + at for page in tiff.pages for tag in page.tags for at in range(12)]
            for _ in range(40):
                changed = bytearray(content)
                at = rng.choice(places)
                if rng.random() < 0.5:
                    changed[at] = rng.randrange(256)
                else:
                    changed[at : at + 4] = rng.choice([0, 2**31 - 1, 2**32 - 1, 10**9]).to_bytes(4, "little")
                outcomes.add(self.try_it(tmp_path / "a.tif", bytes(changed)))
        assert {"read", "UnreadableSlideError"} <= outcomes

    @pytest.mark.parametrize("compression", [1, 7, 8])
    @pytest.mark.parametrize("tile", [256, 2**30])
    def test_claims_of_a_thousand_million_px(self, tmp_path: Path, compression: int, tile: int) -> None:
        """A header of 300 bytes that claims 10⁹ × 10⁹ px."""
        tags = [
            (256, 4, 1, 10**9), (257, 4, 1, 10**9), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 2),
            (277, 3, 1, 3), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 400), (325, 4, 1, 100),
        ]  # fmt: skip
        data = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little")
        for code, kind, count, value in tags:
            data += code.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little")
            data += value.to_bytes(4, "little")
        assert self.try_it(tmp_path / "a.tif", data.ljust(600, b"\0")) != "read"


@pytest.mark.parametrize("folder", ["patient", "a patient's folder"])
def test_folders_do_not_reach_messages(tmp_path: Path, folder: str) -> None:
    """OpenSlide names files beside the one that was opened, as those of a DICOM slide are, with their folders."""
    path = tmp_path / folder / "a.dcm"
    assert without_folders(f"Reading {path.parent}/b.dcm: no such frame", path) == "Reading b.dcm: no such frame"
    assert without_folders("Reading /home/patient/b.dcm: no", path) == "Reading b.dcm: no"
    assert without_folders("C:\\data\\patient\\b.dcm: no", path) == "b.dcm: no"
    assert without_folders("1/2 of 3 / 4, and/or less", path) == "1/2 of 3 / 4, and/or less"
    address = "https://host/patient/b.tif?key=secret"
    assert without_folders(f"{address} failed", address) == "b.tif failed"


@pytest.mark.parametrize("address", ["http://[", "http://[::1/a.tif", "file://[/a.tif", "http://a]/b.zarr"])
def test_an_address_that_cannot_be_parsed_is_refused(address: str) -> None:
    with pytest.raises(UnreadableSlideError, match="address is not valid"):
        open_slide(address)


def test_a_property_name_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    pyramid = halves(texture(200, 150), 1)
    good = write_slide(tmp_path / "good.svs", pyramid, style="aperio", compression="deflate")
    damaged = tmp_path / "damaged.svs"
    content = good.read_bytes()
    assert b"|AppMag = " in content
    damaged.write_bytes(content.replace(b"|MPP = ", b"|M\xff\x80 = ", 1))
    with open_slide(damaged) as slide, open_slide(good) as intact:
        assert slide.info.reader == "openslide"
        assert slide.info.magnification == intact.info.magnification == 20
        assert (slide.info.mpp, intact.info.mpp) == (None, (0.5, 0.5))
        region = Region(0, 0, 200, 150)
        assert np.array_equal(slide.read_level(0, region), intact.read_level(0, region))
