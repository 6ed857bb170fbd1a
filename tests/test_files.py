"""Files are regular and of a bounded size; anything else is refused at once, by every reader. SHA-256 of outputs."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_slides import write_slide

from wsi2ihc.batch.dask_backend import address_of
from wsi2ihc.batch.results_table import read_results
from wsi2ihc.batch.slide_manifest import read_rows
from wsi2ihc.errors import Wsi2IhcError
from wsi2ihc.files import open_regular, read_json, read_regular, sha256_of
from wsi2ihc.models.import_weights import import_checkpoint
from wsi2ihc.models.registry import describe_generator, load_model
from wsi2ihc.registration.landmarks import read_landmarks
from wsi2ihc.registration.transform_io import load_transform
from wsi2ihc.slide import open_slide
from wsi2ihc.tables import read_csv
from wsi2ihc.tissue import load_mask
from wsi2ihc.training.data import PairedData
from wsi2ihc.training.data.image_file import read_image
from wsi2ihc.training.data.layouts import add_metadata
from wsi2ihc.training.history import read_steps
from wsi2ihc.training.options import read_config
from wsi2ihc.translation.checkpoint_folder import read_done_marker
from wsi2ihc.translation.options import TranslateOptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such files on Windows")


@pytest.fixture(params=["pipe", "link to a pipe", "device", "socket"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """Makes something under a name that is not a regular file."""

    def make(name: str) -> Path:
        path = tmp_path / name
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(path))
        return path

    return make


def test_what_is_not_a_regular_file_is_not_opened(special: Callable[[str], Path]) -> None:
    with pytest.raises(OSError, match=r"not a regular file|No such device or address"):
        open_regular(special("file"))


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(tmp_path / "file", 4)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_file_whose_size_is_not_known_is_read_to_the_limit_only() -> None:
    unknown = Path("/proc/self/status")
    if not unknown.exists():
        pytest.skip("needs /proc")
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_regular(unknown, 10)


def _load_mask(path: Path) -> object:
    slide = path.with_name("slide.tif")
    write_slide(slide, np.full((64, 64, 3), 200, np.uint8), tile=64)
    with open_slide(slide) as opened:
        return load_mask(path, opened)


READERS: dict[str, Callable[[Path], object]] = {
    "slide.svs": open_slide,
    "slide.png": open_slide,
    "mask.png": _load_mask,
    "mask.geojson": _load_mask,
    "list.csv": lambda path: read_rows(str(path), "identity", TranslateOptions()),
    "transform.json": load_transform,
    "landmarks.csv": lambda path: read_landmarks(path, (0.5, 0.5)),
    "scheduler.json": lambda path: address_of(str(path)),
    "config.toml": read_config,
    "results.csv": lambda path: read_results(path.parent),
    "steps.csv": lambda path: read_steps(path.parent),
    "model.safetensors": load_model,
    "described.safetensors": describe_generator,
    "weights.pth": lambda path: import_checkpoint(path, mpp=0.5, stain=""),
    "pairs.csv": read_csv,
    "patch.png": read_image,
    "dataset.json": lambda path: add_metadata(PairedData(path.parent, "", ())),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe_or_reads_a_device(special: Callable[[str], Path], name: str) -> None:
    with pytest.raises(Wsi2IhcError) as refusal:
        READERS[name](special(name))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "\xff", "{'a': 1}"])
def test_what_is_not_json_is_a_value_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"\S"):
        read_json(path)


@pytest.mark.parametrize("name", ["mask.geojson", "transform.json", "scheduler.json"])
def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("[" * 100_000)
    with pytest.raises(Wsi2IhcError) as refusal:
        READERS[name](path)
    assert len(str(refusal.value)) < 400


def test_a_marker_that_is_nested_too_deeply_is_no_marker(tmp_path: Path) -> None:
    (tmp_path / "0000.json").write_text("[" * 100_000)
    assert read_done_marker(tmp_path / "0000.json") is None


def test_a_file_has_the_sum_that_other_programs_give(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_sum_of_a_folder_follows_from_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "zarr.json").write_text("{}")
        (tmp_path / name / "c" / "0").write_text("pixels")
    one, two = tmp_path / "one", tmp_path / "two"
    os.utime(two / "zarr.json", (1, 1))
    listed = "".join(
        f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in (("c/0", b"pixels"), ("zarr.json", b"{}"))
    )
    assert sha256_of(one) == sha256_of(two) == hashlib.sha256(listed.encode()).hexdigest()
    (two / "c" / "0").rename(two / "c" / "1")
    assert sha256_of(one) != sha256_of(two)
    (two / "c" / "1").rename(two / "c" / "0")
    (two / "c" / "0").write_text("Pixels")
    assert sha256_of(one) != sha256_of(two)


def test_a_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no such files here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of(tmp_path)
