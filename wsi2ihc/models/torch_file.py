"""Check files of ``torch.save`` before torch loads them, and describe files that contain no generator."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..errors import ModelError, ModelNotFoundError
from .model_spec import SIGNATURES, open_model_file

_STARTS: tuple[tuple[bytes, str], ...] = (
    *SIGNATURES,
    (
        b"version https://git-lfs",
        "a pointer of Git LFS instead of the file itself; fetch that with 'git lfs pull', or download it",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras), not a file of torch.save"),
    (b"\x93NUMPY", "a NumPy array, not a file of torch.save"),
    (b"\x1f\x8b", "a gzip archive; unpack it and import the file in it"),
    (b"BZh", "a bzip2 archive; unpack it and import the file in it"),
    (b"\xfd7zXZ", "an xz archive; unpack it and import the file in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and import the file in it"),
    (b"Rar!", "a RAR archive; unpack it and import the file in it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it and import the file in it"),
    (b"%PDF", "a PDF document, not a file of torch.save"),
    (b"GGUF", "a GGUF file, not a file of torch.save"),
)
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_TAR = slice(257, 262)
_TFLITE = slice(4, 8)


def describe_content(start: bytes, name: str) -> str | None:
    """Describe a file by its first 512 bytes, and what to do; None for the older format of ``torch.save``."""
    if not start:
        return "empty; download or copy it again"
    for beginning, what in _STARTS:
        if start.startswith(beginning):
            return what
    if _WEB_PAGE.match(start):
        return "a web page that was saved in place of the file; download it again, in a browser if necessary"
    if start[_TAR] == b"ustar":
        return "a tar archive, or a file of torch before 0.1.10; unpack it and import the file in it"
    if start[_TFLITE] == b"TFL3":
        return "a TensorFlow Lite model, not a file of torch.save"
    if name.lower().endswith(".onnx") or (start[:1] == b"\x08" and b"pytorch" in start[:64]):
        return "an ONNX model; import the PyTorch weights (.pth) that it was made from"
    if start[:1] == b"{" or start.isascii():
        return "a text file, not a file of torch.save"
    return None


_NETWORKS: tuple[tuple[str, str], ...] = (
    (r"^model1_1\.|\.model1_1\.", "pix2pixHD's local enhancer"),
    (r"conv_block\.\d+\.weight$", "a ResNet generator of another kind"),
    (r"(^|\.)scale\d+_layer\d+\.|(^|\.)layer\d+\.0\.weight$", "a multi-scale discriminator of pix2pixHD"),
    (r"(^|\.)mlp_\d+\.\d+\.weight$", "the feature network of CUT (net_F)"),
    (r"(^|\.)(input_blocks|time_embed|time_embedding|time_mlp|mid_block|down_blocks)\.", "a diffusion model"),
    (r"(^|\.)(DownBlock|UpBlock1|gap_fc)\b", "a generator of U-GAT-IT"),
    (r"(^|\.)(enc_content|enc_style)\.|(^|\.)dec\.model\.", "a generator of MUNIT or DRIT"),
    (r"(^|\.)(mlp_shared|mlp_gamma)\.", "a generator of SPADE"),
    (r"(^|\.)(style|mapping|synthesis)\.", "a generator of StyleGAN"),
    (r"(^|\.)(W_g|psi)\.\d+\.", "a U-Net with attention"),
    (r"(^|\.)(attn|blocks\.\d+|cls_token|patch_embed)\b", "a transformer"),
    (r"(^|\.)(encoder|decoder)\.", "an encoder and decoder of another kind"),
    (r"(^|\.)(inc|outc)\.", "a U-Net of another kind, with double convolutions"),
    (
        r"(^|\.)features\.\d+\.|(^|\.)layer[1-4]\.\d+\.|(^|\.)Mixed_\d",
        "a classification network (VGG, ResNet, Inception)",
    ),
)


def describe_network(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Describe an unsupported network by the names and shapes of its weights; None if it is unknown."""
    for pattern, what in _NETWORKS:
        found = re.compile(pattern)
        if any(found.search(name) for name in shapes):
            return what
    for name, shape in shapes.items():
        if len(shape) == 4 and re.search(r"(^|\.)(model|net)\.0\.(weight|weight_orig)$", name):
            if shape[2:] == (4, 4):
                return "a discriminator of pix2pix (PatchGAN, net_D); import the generator (net_G)"
            if shape[2:] == (1, 1):
                return "a pixel-wise discriminator of pix2pix (PixelGAN, net_D); import the generator (net_G)"
    return None


LARGEST_BYTES = 2 << 30
"""The published generators' full training checkpoints, with discriminators and optimizers, take at most 1 GB."""

_LARGEST_DIRECTORY_BYTES = 16 << 20
_MAX_RECORDS = 50_000
_LARGEST_PICKLE_BYTES = 32 << 20
_ZIP = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"

_MAX_NESTED_ITEMS = 1_000_000
_MAX_DEPTH = 100
"""Bounds of nested tuples: fifty levels, each holding the one below twice, take 200 bytes, but 2^50 steps to hash."""

_ALLOWED = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
} | {str(kind) for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
"""Functions and classes that weights need. torch allows more, some of which allocate any amount of memory."""


_SAFE_TORCH = "2.10"
"""Before it, foreign files could run code (CVE-2025-32434) or corrupt memory (CVE-2026-24747) despite weights_only."""


class _Ignored:
    """Stand-in for NumPy's functions and classes, which are not called: their values are not weights."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("scalar", "_reconstruct")
_IGNORED = {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in _NUMPY} | {
    "numpy.dtype",
    "numpy.ndarray",
}
"""Losses and settings in training checkpoints are often NumPy scalars."""


def check_torch_version() -> None:
    """Refuse to load foreign files with a torch that has known vulnerabilities."""
    if torch.torch_version.TorchVersion(torch.__version__) < _SAFE_TORCH:
        raise ModelError(
            f"torch {torch.__version__} does not read foreign .pth files safely (CVE-2026-24747); import with torch "
            f"{_SAFE_TORCH} or later, on this or another machine, or convert the weights to .safetensors"
        )


def load_torch_file(path: Path, largest_bytes: int = LARGEST_BYTES) -> object:
    """Load a file of ``torch.save`` on the CPU, without running code and in about the memory of the file's size.

    Raises `ModelNotFoundError` if it is missing, and `ModelError` if it is another kind of file (the message names it),
    is damaged, or holds anything but plain weights.
    """
    try:
        with open_model_file(path, largest_bytes) as file:
            return _load(_checked(file, path.name))
    except (ModelError, ModelNotFoundError):
        raise
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror or error!s:.100})") from error
    except Exception as error:  # zipfile, the scan and torch raise many kinds of errors for damaged files
        raise ModelError(
            f"{path.name} is not a file of plain PyTorch weights, or is damaged "
            f"({' '.join(str(error).split())!s:.80}); download or copy it again"
        ) from error


def _checked(file: BinaryIO, name: str) -> BinaryIO:
    """Check a file; return a copy of the archive, or the file itself if it has the older format."""
    start = file.read(512)
    file.seek(0)
    if start.startswith((_ZIP, _ZIP_END)):
        return _checked_archive(file, name)
    if what := describe_content(start, name):
        raise ModelError(f"{name} is {what}")
    for _ in range(5):  # magic number, protocol, system, the object, keys of the storages; then their bytes
        _check_globals(_scan(file), name)
    file.seek(0)
    return file


def _load(file: BinaryIO) -> object:
    with warnings.catch_warnings(), torch.serialization.safe_globals([(_Ignored, name) for name in sorted(_IGNORED)]):
        warnings.simplefilter("ignore")  # torch warns about pickles
        return torch.load(file, map_location="cpu", weights_only=True)


class _BoundedReads(io.RawIOBase):
    """File that refuses reads of more than ``limit`` bytes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.limit = _LARGEST_DIRECTORY_BYTES

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        content = self._file.read(min(self.limit + 1, self.limit + 1 if size is None or size < 0 else size))
        if len(content) > self.limit:
            raise ValueError("its directory is too large")
        return content


def _checked_archive(file: BinaryIO, name: str) -> BinaryIO:
    """Check and copy a zip archive: no compressed, repeated or overlapping records, and valid checksums."""
    size = file.seek(0, io.SEEK_END)
    # Bounded, since zipfile reads the directory as a whole, however many entries it has.
    bounded = _BoundedReads(file)
    with zipfile.ZipFile(bounded) as archive:
        bounded.limit = size
        records = archive.infolist()
        if what := _other_archive(archive.namelist()):
            raise ModelError(f"{name} is {what}")
        _check_records(records, size)
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as target:
            for record in records:
                content = archive.read(record)  # compares the checksum
                if record.filename.endswith("/data.pkl") or record.filename == "data.pkl":
                    if len(content) > _LARGEST_PICKLE_BYTES:
                        raise ValueError("its description is too large")
                    _check_globals(_scan(io.BytesIO(content)), name)
                target.writestr(record.filename, content)
    copy.seek(0)
    return copy


def _other_archive(names: list[str]) -> str | None:
    """Describe a zip archive that is not a file of ``torch.save``; None if it is one."""
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript program, which is not run; save its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz), not a file of torch.save"
    weights = next((name for name in names if name.lower().endswith((".pth", ".pt", ".ckpt", ".safetensors"))), None)
    if weights is not None:
        return f"a zip archive of files; unpack it and import {weights[:80]!r}"
    return "a zip archive without PyTorch weights"


def _check_records(records: list[zipfile.ZipInfo], file_bytes: int) -> None:
    if len(records) > _MAX_RECORDS:
        raise ValueError(f"{len(records)} records")
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two records of the same name")
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError("compressed records, which torch.save does not write")
        if record.flag_bits & 1:
            raise ValueError("encrypted records")
        if record.header_offset < end:
            raise ValueError("overlapping records")
        end = record.header_offset + record.file_size
    if end > file_bytes:
        raise ValueError("records beyond the end of the file")


class _Value(NamedTuple):
    """A value on the stack of the unpickler."""

    size: int = 1  # items of nested tuples, counted at each occurrence
    depth: int = 0  # depth of nested tuples
    word: str = ""  # short string, or name of a function or class; "" for others


def _scan(file: BinaryIO) -> set[str]:
    """Collect the functions and classes that a pickle names, and leave ``file`` at the end of the pickle."""
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    names: set[str] = set()
    for opcode, argument, _ in _operations(file):
        match opcode.name:
            case "MARK":
                marks.append(len(stack))
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "GLOBAL":
                word = str(argument).replace(" ", ".", 1)
                names.add(word)
                stack.append(_Value(word=word))
            case "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(_Value(word=str(argument)[:16]))
            case _:
                _apply(opcode, stack, marks)
    return names


def _operations(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "MEMOIZE", "DUP", "NEWOBJ_EX"):
            raise ValueError(f"the pickle operation {opcode.name}, which torch.save does not write")
        yield opcode, argument, position


def _apply(opcode: pickletools.OpcodeInfo, stack: list[_Value], marks: list[int]) -> None:
    before = opcode.stack_before
    marked = pickletools.markobject in before
    start = marks.pop() if marked else len(stack) - len(before)
    fixed = before.index(pickletools.markobject) if marked else 0
    if start - fixed < 0:
        raise ValueError("an operation on an empty stack")
    items = stack[start - fixed :]
    del stack[start - fixed :]
    size, depth = 1 + sum(item.size for item in items), max((item.depth for item in items), default=0)
    if opcode.name.startswith("TUPLE"):
        depth += 1
        if size > _MAX_NESTED_ITEMS or depth > _MAX_DEPTH:
            raise ValueError("tuples nested without end")
    if opcode.name == "REDUCE" and items[0].word == "_codecs.encode" and items[1].word != "latin1":
        raise ValueError("an encoding other than latin1")
    word = items[-1].word if opcode.name == "TUPLE2" else ""
    stack.extend(_Value(size, depth, word) for _ in opcode.stack_after)


def _check_globals(names: set[str], name: str) -> None:
    """Refuse a pickle that names anything but what weights need."""
    odd = sorted(word for word in names if word not in _ALLOWED | _IGNORED and not _is_storage(word))
    if not odd:
        return
    if any(word.startswith("torch.nn.modules.") for word in odd):
        raise ModelError(
            f"{name} holds a whole pickled network instead of its weights; a file that holds other objects is not "
            "opened, since that could run code: save its state_dict alone, torch.save(network.state_dict(), FILE)"
        )
    raise ModelError(
        f"{name} holds {odd[0]!r:.80} beside weights; a file that holds other objects is not opened, since that could "
        "run code: save its state_dict alone"
    )


def _is_storage(word: str) -> bool:
    module, _, kind = word.rpartition(".")
    is_typed = kind.endswith("Storage") and kind not in ("UntypedStorage", "TypedStorage")
    return module in ("torch", "torch.cuda") and is_typed
