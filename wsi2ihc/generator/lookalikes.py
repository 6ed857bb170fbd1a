"""Recognize files and networks that are not a generator's weights, to name them in errors."""

from __future__ import annotations

import re
from collections.abc import Mapping

_STARTS: tuple[tuple[bytes, str], ...] = (
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
        return "a web page that was saved in place of the file; download it again, by hand if a page asks for it"
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
