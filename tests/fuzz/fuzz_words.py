"""Words that the fuzzed kinds of files are made of."""

from __future__ import annotations


def _words(text: str) -> tuple[bytes, ...]:
    return tuple(word.encode() for word in text.split())


XML = (
    *_words("""
    <Image> <Pixels PhysicalSizeX=" PhysicalSizeXUnit=" SizeX <!DOCTYPE <!ENTITY &x; <![CDATA[ ]]> <!-- --> µm
    &#181;m nm
    NominalMagnification <Objective <TiffData Aperio | = xmlns:a='b' DICOM_PIXEL_SPACING images= spacing=
    unit= encoding=
    """),
    b"|AppMag = ",
    b"|MPP = ",
    b"ImageJ=1.53\n",
    b"<!DOCTYPE a [<!ENTITY x '",
)
JSON = _words("""
    "type" "coordinates" "FeatureCollection" "Polygon" "MultiPolygon" "GeometryCollection" "geometry" "properties"
    "classification" "Ignore*" null [] {} 1e999 NaN [0,0] ""
""")
ZARR = (*_words("zarr_format node_type multiscales axes scale codecs shape chunk_shape fill_value data_type"), *JSON)
CSV = (
    *_words("""
    path slide output mpp model a.tif b.tif patient_id slide_id he_path ihc_path split train her2 3+ landmarks transform
    identity tissue none region .. / a.tif;b.csv X Y "" , ; con http://127.0.0.1:9/ name patch group a_1 v_1 stain role
    """),
    b"1 0 0 0 1 0",
    b"\n",
)
TOML = (
    *_words("seed [a] [[a]] ''' inf nan 1979-05-27 true 0o7 a.b.c depth ngf crop_size batch_size"),
    b'"""',
    b"epochs = ",
    b"recipe = ",
)
SAFETENSORS = _words('"dtype" "F32" "BF16" "shape" "data_offsets" "__metadata__" [0,0] "I64" \\u0000 1e9')
NPY = (*_words("'descr' '<f8' '|O' 'fortran_order'"), b"(7, 7, 2)")
ICC = (*_words("desc cprt rXYZ rTRC A2B0 acsp CMYK mluc curv para mft2 vcgt"), b"RGB ", b"Lab ", b"XYZ ")
PICKLE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"\x80\x02",
    b"R.",
    b"q\x01",
    b"}",
    b"K\x00",
)
