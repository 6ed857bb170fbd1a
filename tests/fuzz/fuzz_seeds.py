"""Makes the corpus that mutation begins with: ``python tests/fuzz/fuzz_seeds.py tests/fuzz/corpus``.

Everything is computed here; no pixel is taken from a real slide. Inputs that once went wrong lie in the same folders;
their names begin with ``was-``.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
from fuzz_targets import TARGETS, TRANSFORM, chunk_of, tissue
from make_slides import halves, texture, write_slide
from PIL import Image, ImageCms

from wsi2ihc.models.model_file import save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.networks import ResnetGenerator

OME = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="20.0"/></Instrument>
<Image ID="Image:0" Name="a"><ObjectiveSettings ID="Objective:0"/>
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="96" SizeY="96" SizeZ="1" SizeC="3" SizeT="1"
PhysicalSizeX="0.5" PhysicalSizeXUnit="&#181;m" PhysicalSizeY="500" PhysicalSizeYUnit="nm">
<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>"""
APERIO = (
    "Aperio Image Library v11.2.1 \r\n96x96 [0,0 96x96] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990|Date = 01/02/09"
)
PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">
<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"0.00025" "0.00025"
</Attribute><Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS</Attribute>
</DataObject>"""
IMAGEJ = "ImageJ=1.53t\nunit=micron\nspacing=1\nfinterval=1\nmin=0\nmax=255\n"
GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [[10, 10], [80, 10], [80, 80], [10, 80], [10, 10]],
                    [[30, 30], [40, 30], [40, 40], [30, 30]],
                ],
            },
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[[[60, 60], [90, 60], [90, 90], [60, 60]]]]},
            "properties": {"name": "b", "classification": {"name": "Ignore*"}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [5, 5]}]},
            "properties": None,
        },
    ],
}
CONFIG = """recipe = "variance"
epochs = 4
ngf = 4
ndf = 4
depth = 1
crop_size = 32
batch_size = 2
mpp = 0.5
stain = "HER2"
seed = 3
"""


def _tiffs(folder: Path) -> None:
    pixels = tissue()
    pyramid = halves(pixels, 2)
    for compression in ("jpeg", "deflate", "lzw", "jpeg2000"):
        write_slide(folder / f"{compression}.tif", pyramid, tile=64, compression=compression, quality=60)
    write_slide(
        folder / "aperio.svs",
        pyramid,
        tile=64,
        style="aperio",
        photometric="rgb",
        quality=60,
        missing=frozenset({(0, 1, 0)}),
    )
    write_slide(folder / "subifds.ome.tif", pyramid, tile=64, subifds=True, bigtiff=True, description=OME, quality=60)
    write_slide(folder / "strips.tif", pixels[:48, :48], tile=None, compression="lzw")
    small = np.ascontiguousarray(pixels[:64, :64])
    with tifffile.TiffWriter(folder / "pages.tif", byteorder=">") as tiff:
        tiff.write(small[:32, :32], photometric="rgb", compression="zstd", tile=(32, 32), metadata=None)
        tiff.write(
            small,
            photometric="rgb",
            compression="lzma",
            tile=(64, 64),
            metadata=None,
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
        )
        tiff.write(small[..., 0], photometric="minisblack", compression="packbits", metadata=None)
    for compression in ("webp", "jpegxl", "png", "lerc", "jpegxr"):
        tifffile.imwrite(
            folder / f"{compression}.tif",
            small,
            photometric="rgb",
            compression=compression,
            tile=(32, 32),
            metadata=None,
        )
    tifffile.imwrite(
        folder / "planar.tif",
        np.moveaxis(small, 2, 0),
        photometric="rgb",
        planarconfig="separate",
        tile=(32, 32),
        compression="deflate",
        metadata=None,
    )


def _images(folder: Path) -> None:
    image = Image.fromarray(texture(40, 32))
    for suffix, options in {"png": {}, "jpg": {"quality": 60}, "bmp": {}, "webp": {"quality": 50}}.items():
        image.save(folder / f"small.{suffix}", **options)
    image.quantize(16).save(folder / "palette.png")
    image.convert("L").save(folder / "gray.png")
    image.save(
        folder / "profile.jpg",
        quality=50,
        progressive=True,
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    )


def _patches(folder: Path) -> None:
    image = Image.fromarray(texture(64, 32))
    image.save(folder / "small.png")
    image.save(folder / "small.jpg", quality=60)
    image.save(folder / "small.tif", compression="tiff_deflate")
    image.save(folder / "small.bmp")


def _profiles(folder: Path) -> None:
    (folder / "srgb.icc").write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (folder / "lab.icc").write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


def _element(group: int, element: int, kind: str, value: bytes) -> bytes:
    """A DICOM element in explicit little endian."""
    value += b"\0" * (len(value) % 2) if kind in {"UI", "OB", "SQ"} else b" " * (len(value) % 2)
    head = struct.pack("<HH2s", group, element, kind.encode())
    is_long = kind in {"OB", "OW", "SQ", "UT"}
    return head + (struct.pack("<HI", 0, len(value)) if is_long else struct.pack("<H", len(value))) + value


def _number(value: int) -> bytes:
    return struct.pack("<H", value)


def _sequence(group: int, element: int, content: bytes) -> bytes:
    return _element(group, element, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content)


def _dicom(folder: Path) -> None:
    """A slide of 96×96 px in four JPEG tiles, as the VL Whole Slide Microscopy storage class has it."""
    whole_slide, syntax = b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.1.2.4.50"
    pixels = np.pad(tissue(), ((0, 32), (0, 32), (0, 0)), mode="edge")
    frames = []
    for y in (0, 64):
        for x in (0, 64):
            packed = io.BytesIO()
            Image.fromarray(pixels[y : y + 64, x : x + 64]).save(packed, "JPEG", quality=60)
            content = packed.getvalue()
            frames.append(content + b"\0" * (len(content) % 2))
    meta = b"".join(
        (
            _element(2, 1, "OB", b"\0\1"),
            _element(2, 2, "UI", whole_slide),
            _element(2, 3, "UI", b"1.2.3.4"),
            _element(2, 16, "UI", syntax),
            _element(2, 18, "UI", b"1.2.3.9"),
        )
    )
    offsets, position = [], 0
    for frame in frames:
        offsets.append(position)
        position += 8 + len(frame)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 4 * len(offsets)) + struct.pack(f"<{len(offsets)}I", *offsets)
    items += b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame for frame in frames)
    spacing = _sequence(
        0x28, 0x9110, _element(0x18, 0x50, "DS", b"0.001") + _element(0x28, 0x30, "DS", b"0.0005\\0.0005")
    )
    frame_type = _sequence(0x40, 0x710, _element(8, 0x9007, "CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"))
    data = b"".join(
        (
            _element(8, 8, "CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
            _element(8, 0x16, "UI", whole_slide),
            _element(8, 0x18, "UI", b"1.2.3.4"),
            _element(8, 0x60, "CS", b"SM"),
            _element(8, 0x70, "LO", b"Nobody"),
            _element(0x20, 0xD, "UI", b"1.2.3.5"),
            _element(0x20, 0xE, "UI", b"1.2.3.6"),
            _element(0x20, 0x52, "UI", b"1.2.3.7"),
            _element(0x20, 0x9311, "CS", b"TILED_FULL"),
            _element(0x28, 2, "US", _number(3)),
            _element(0x28, 4, "CS", b"YBR_FULL_422"),
            _element(0x28, 6, "US", _number(0)),
            _element(0x28, 8, "IS", b"4"),
            _element(0x28, 0x10, "US", _number(64)),
            _element(0x28, 0x11, "US", _number(64)),
            _element(0x28, 0x100, "US", _number(8)),
            _element(0x28, 0x101, "US", _number(8)),
            _element(0x28, 0x102, "US", _number(7)),
            _element(0x28, 0x103, "US", _number(0)),
            _element(0x48, 6, "UL", struct.pack("<I", 96)),
            _element(0x48, 7, "UL", struct.pack("<I", 96)),
            _element(0x48, 0x105, "SQ", b""),
            _element(0x48, 0x303, "UL", struct.pack("<I", 1)),
            _sequence(0x5200, 0x9229, spacing + frame_type),
            struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF),
            items,
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        )
    )
    length = _element(2, 0, "UL", struct.pack("<I", len(meta)))
    (folder / "slide.dcm").write_bytes(b"\0" * 128 + b"DICM" + length + meta + data)


def _models(folder: Path, weights: Path) -> None:
    torch.manual_seed(0)
    network = ResnetGenerator(1, 4, "batch", False)
    spec = GeneratorSpec(architecture="resnet", depth=1, width=4, norm="batch", dropout=False, mpp=0.5, stain="HER2")
    save_checkpoint(folder / "resnet.safetensors", network, spec, half=True)
    (folder / "resnet.safetensors").chmod(0o644)
    state = {key: value.half() for key, value in network.state_dict().items()}
    torch.save(state, weights / "state.pth")
    torch.save(
        {
            "netG": {f"module.{key}": value for key, value in state.items()},
            "epoch": np.float64(3),
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        },
        weights / "wrapped.pth",
    )
    torch.save(state, weights / "legacy.pth", _use_new_zipfile_serialization=False)


LIST = """path,output,mpp,model,tissue
a.tif,one.ome.tiff,0.5,identity,auto
b.tif,,,counterstain,none
"""
PAIRS = """patient_id,slide_id,he_path,ihc_path,her2,he_mpp,ihc_mpp,split,landmarks,transform
p1,s1,a.tif,b.tif,3+,0.5,0.5,train,b.csv;b.csv,
p2,s2,a.tif,b.tif,0,,,val,,identity
p3,s3,b.tif,a.tif,1+,,,,,1 0 0 0 1 0
p4,s4,b.tif,a.tif,,,,test,,t.json
"""
GROUPS = """name,patient,split
a_1,p1,train
a_2,p1,train
b_1,p2,train
b_2,p2,train
v_1,p3,val
v_2,p3,val
"""
PATCHES = """name,patient,slide,split,her2
a_1,p1,s1,train,3+
a_2,p1,s1,train,3+
b_1,p2,s2,train,0
b_2,p2,s2,train,0
v_1,p3,s3,val,1+
v_2,p3,s3,val,
"""


def _texts(corpus: Path) -> None:
    files = {
        "description/ome.xml": OME,
        "description/aperio.txt": APERIO,
        "description/philips.xml": PHILIPS,
        "description/imagej.txt": IMAGEJ,
        "geojson/qupath.geojson": json.dumps(GEOJSON),
        "geojson/list.geojson": json.dumps(GEOJSON["features"]),
        "batch_csv/plain.csv": LIST,
        "batch_csv/semicolon.csv": "slide;mpp\na.tif;0,5\nb.tif;0.25\n",
        "pairs_csv/plain.csv": PAIRS,
        "landmarks/plain.csv": "id,X,Y\n1,20,20\n2,70,20\n3,20,70\n4,70,75\n",
        "landmarks/noname.csv": ",X,Y\n0,20.5,20\n1,70,20\n2,20,1e1\n",
        "transform/affine.json": json.dumps(TRANSFORM),
        "groups_csv/plain.csv": GROUPS,
        "config/plain.toml": CONFIG,
        "dataset_metadata/dataset.json": json.dumps({"mpp": 0.5, "stain": "HER2", "name": "a", "license": "CC0"}),
        "dataset_metadata/pairs.csv": PATCHES,
        "bands_plan/empty.json": "{}",
        "bands_plan/some.json": json.dumps(
            {"band_px": 128, "size": [1024, 1024], "damaged_areas": [], "core_size": [256, 256]}
        ),
    }
    for name, content in files.items():
        (corpus / name).write_bytes(content.encode())


def _left_by_the_program(corpus: Path) -> None:
    """Files that the program writes, and that people edit and disks damage."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("batch_state", "bands_plan", "zarr"):
            scene = TARGETS[name].scene
            assert scene is not None
            scene(Path(place) / name)
        batch = Path(place) / "batch_state" / "out"
        (corpus / "batch_state" / "results.csv").write_bytes((batch / "results.csv").read_bytes())
        (corpus / "batch_state" / "marker.json").write_bytes(
            (batch / ".wsi2ihc-batch" / "done" / "a.ome.tiff.json").read_bytes()
        )
        store = Path(place) / "bands_plan" / ".out.ome.tiff.bands"
        (corpus / "bands_plan" / "whole.json").write_bytes((store / "plan.json").read_bytes())
        (corpus / "bands_mask" / "mask.npz").write_bytes((store / "mask.npz").read_bytes())
        zarr = Path(place) / "zarr" / "input.ome.zarr"
        (corpus / "zarr" / "group.json").write_bytes((zarr / "zarr.json").read_bytes())
        (corpus / "zarr" / "array.json").write_bytes((zarr / "0" / "zarr.json").read_bytes())
        (corpus / "zarr_chunk" / "shard.bin").write_bytes(chunk_of(zarr).read_bytes())


def main(corpus: Path) -> None:
    """Write the corpus."""
    for name in TARGETS:
        (corpus / name).mkdir(parents=True, exist_ok=True)
    _tiffs(corpus / "tiff")
    _images(corpus / "image")
    _patches(corpus / "patch")
    _profiles(corpus / "icc")
    _dicom(corpus / "dicom")
    _models(corpus / "safetensors", corpus / "pth")
    _texts(corpus)
    rng = np.random.default_rng(0)
    np.savez_compressed(corpus / "field" / "field.npz", coefficients=rng.normal(size=(7, 7, 2)))
    _left_by_the_program(corpus)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
