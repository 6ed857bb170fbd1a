"""Files of ``torch.save`` that are damaged, or made to do harm; and files that are something else."""

from __future__ import annotations

import io
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wsi2ihc.errors import ModelError, ModelNotFoundError
from wsi2ihc.models.import_weights import import_checkpoint
from wsi2ihc.models.networks import ResnetGenerator
from wsi2ihc.models.torch_file import load_torch_file


def rewritten(path: Path, change: Callable[[str, bytes], bytes] | None = None, compression: int = 0) -> Path:
    """The archive again, with its records changed and compressed in some way."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)) if change else old.read(name))
    return path


def with_pickle(path: Path, pickled: bytes) -> Path:
    return rewritten(path, lambda name, content: pickled if name.endswith("data.pkl") else content)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_torch_file(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_bit_is_detected_by_the_checksum(weights: Path, place: float) -> None:
    content = bytearray(weights.read_bytes())
    with zipfile.ZipFile(weights) as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
    start = content.index(record.filename.encode()) + len(record.filename) + 64
    content[start + int(place * (record.file_size - 64))] ^= 1
    weights.write_bytes(content)
    refused(weights, "CRC-32")


def test_a_stored_archive_loads_as_torch_loads_it(weights: Path) -> None:
    loaded = load_torch_file(weights)
    expected = torch.load(weights, weights_only=True)
    assert isinstance(loaded, dict)
    torch.testing.assert_close(dict(loaded), dict(expected), rtol=0, atol=0)


def test_compressed_records_are_refused_before_they_are_unpacked(weights: Path) -> None:
    path = rewritten(weights, lambda name, content: bytes(50_000_000) if name.endswith("/0") else content, 8)
    assert path.stat().st_size < 1_000_000
    refused(path, "compressed records")


def test_records_of_the_same_name_are_refused(weights: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(weights, "a") as archive:
        archive.writestr(archive.namelist()[1], b"again")
    refused(weights, "same name")


def test_overlapping_records_are_refused(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 4)
    third = content.index(b"PK\x01\x02", second + 4)
    content[third + 42 : third + 46] = content[second + 42 : second + 46]  # the offset of its local header
    weights.write_bytes(content)
    refused(weights, "overlapping records|differ|overlap")


def test_a_claim_of_a_huge_record_is_refused(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 20 : directory + 28] = struct.pack("<II", 0xF0000000, 0xF0000000)
    weights.write_bytes(content)
    refused(weights, "damaged")


def test_too_many_records_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi2ihc.models.torch_file._MAX_RECORDS", 50)
    path = tmp_path / "many.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(51):
            archive.writestr(f"a/data.pkl/{i}" if i else "a/data.pkl", b"")
    refused(path, "51 records")


PROTOCOL, STOP = b"\x80\x02", b"."


def _integer(value: int) -> bytes:
    content = value.to_bytes(8, "little")
    return b"\x8a\x08" + content


def _nested(width: int, times: int) -> bytes:
    """A dictionary whose key is a tuple that holds itself ``width`` times, ``times`` deep."""
    parts = [PROTOCOL, b"}", b")", b"q\x00"]
    for _ in range(times):
        parts += [b"(", b"h\x00" * width, b"t", b"q\x00"]
    return b"".join([*parts, b"K\x01", b"s", STOP])


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (PROTOCOL + b"c__builtin__\nbytearray\n" + _integer(10**11) + b"\x85R" + STOP, "bytearray"),
        (PROTOCOL + b"cbuiltins\nbytearray\n" + _integer(10**11) + b"\x85R" + STOP, "bytearray"),
        (PROTOCOL + b"ctorch\nUntypedStorage\n" + _integer(10**11) + b"\x85R" + STOP, "UntypedStorage"),
        (PROTOCOL + b"ctorch\nFloatTensor\n" + _integer(10**11) + b"\x85R" + STOP, "FloatTensor"),
        (PROTOCOL + b"cos\nsystem\nX\x04\x00\x00\x00true\x85R" + STOP, "system"),
        (PROTOCOL + b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R" + STOP, "latin1"),
        (_nested(2, 60), "nested without end"),
        (_nested(1, 200), "nested without end"),
        (_nested(30, 5), "nested without end"),
        (PROTOCOL + b"R.", "empty stack"),
        (PROTOCOL + b"h\x07" + STOP, "damaged"),
        (PROTOCOL + b"\x8c\x02os\x8c\x06system\x93" + STOP, "STACK_GLOBAL"),
        (b"", "damaged"),
    ],
)  # fmt: skip
def test_pickles_without_bounds_of_memory_or_time_are_refused(weights: Path, pickled: bytes, words: str) -> None:
    began = time.process_time()
    refused(with_pickle(weights, pickled), words)
    assert time.process_time() - began < 5


def test_weights_that_claim_more_bytes_than_the_file_are_refused(tmp_path: Path) -> None:
    state = ResnetGenerator(1, 2).state_dict()
    state["model.10.conv_block.1.weight"] = torch.zeros(1).expand(4096, 4096, 3, 3)
    path = tmp_path / "expanded.pth"
    torch.save(state, path)
    with pytest.raises(ModelError, match="claim more bytes"):
        import_checkpoint(path, mpp=0.5, stain="")


def test_numbers_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    state = ResnetGenerator(1, 2).state_dict()
    state["model.4.weight"] = state["model.4.weight"].to(torch.int32)
    path = tmp_path / "integers.pth"
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"model\.4\.weight holds int32 numbers"):
        import_checkpoint(path, mpp=0.5, stain="")


def test_the_older_format_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert load_torch_file(path).keys() == {"weight", "bias"}  # type: ignore[attr-defined]
    hostile = PROTOCOL + b"cbuiltins\nbytearray\n" + _integer(10**11) + b"\x85R" + STOP
    start = content.index(b"}q\x00(")  # of the object: after magic number, protocol and system
    for changed in (hostile, content[:start] + hostile, content[: len(content) // 2], content[:-3]):
        path.write_bytes(changed)
        refused(path, r"bytearray|damaged|not a file")


def test_a_vulnerable_torch_does_not_import(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ModelError, match=r"import with torch 2\.10 or later"):
        import_checkpoint(weights, mpp=0.5, stain="")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"", "empty"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "git lfs pull"),
        ("a.pth", b"<!DOCTYPE html><title>Virus scan warning</title>", "web page"),
        ("a.pth", b"\n <HTML>", "web page"),
        ("a.onnx", b"\x08\x07\x12\x07pytorch" + bytes(50), "ONNX"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        ("a.tar.gz", b"\x1f\x8b\x08" + bytes(50), "gzip"),
        ("a.pth", bytes(257) + b"ustar" + bytes(300), "tar archive"),
        ("a.json", b'{"a": 1}', "text file"),
        ("a.pth", os.urandom(300), "not a file of plain PyTorch weights"),
        ("a.pth", b"PK\x03\x04" + bytes(100), "damaged"),
    ],
)  # fmt: skip
def test_other_files_are_named_in_the_error(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, words)


def test_other_archives_are_named_in_the_error(tmp_path: Path) -> None:
    cases = {
        "code/constants.pkl": "TorchScript",
        "x.npy": "NumPy archive",
        "a/b.pth": "import 'a/b.pth'",
        "x": "without",
    }
    for member, words in cases.items():
        path = tmp_path / "archive.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, b"")
        refused(path, words)


def test_a_pickled_network_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(nn.Linear(1, 1), path)
    refused(path, "whole pickled network")


def test_special_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_torch_file(tmp_path / "none.pth")
    refused(tmp_path, "is a folder, not a model file")
    refused(Path(os.devnull), "not a regular file")
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(3 << 30)
    refused(tmp_path / "huge.pth", "larger than 2048 MB")


def test_damage_anywhere_is_refused_or_harmless(weights: Path) -> None:
    content = weights.read_bytes()
    expected: Any = load_torch_file(weights)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        place = int(torch.randint(len(content), (), generator=generator))
        weights.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            loaded: Any = load_torch_file(weights)
        except ModelError:
            continue
        torch.testing.assert_close(dict(loaded), dict(expected), rtol=0, atol=0)
