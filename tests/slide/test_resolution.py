import math

import pytest

from wsi2ihc.errors import OptionError
from wsi2ihc.slide.metadata import GivenResolution, check_mpp, positive_number, resolve_mpp
from wsi2ihc.slide.slide_xml import XmlError, parse_ome_xml


@pytest.mark.parametrize(
    ("stated", "own", "tags", "mpp", "source"),
    [
        (None, (0.25, 0.25), None, (0.25, 0.25), "slide"),
        (None, (0.25, 0.25), (0.5, 0.5), (0.25, 0.25), "slide"),
        (None, None, (0.5, 0.5), (0.5, 0.5), "tiff tags"),
        ((0.3, 0.3), (0.25, 0.25), (0.5, 0.5), (0.3, 0.3), "stated"),
        (None, (28.969, 28.968), None, (28.969, 28.968), "slide"),  # a DICOM overview
        (None, None, None, None, ""),
        (None, None, (352.78, 352.78), None, ""),  # 72 dpi
        (None, None, (264.58, 264.58), None, ""),  # 96 dpi
        (None, None, (25400.0, 25400.0), None, ""),  # 1 dpi
        (None, None, (21.17, 21.17), None, ""),  # 1200 dpi
        (None, (0.0001, 0.0001), (0.5, 0.5), None, ""),  # a slide that contradicts itself is not guessed at
        (None, (0.25, 500.0), None, None, ""),
    ],
)
def test_which_resolution_is_believed(stated, own, tags, mpp, source) -> None:
    found = resolve_mpp(GivenResolution(stated), own, tags)
    assert (found.mpp, found.source) == (mpp, source)
    assert bool(found.problems) == (mpp is None or stated is not None)
    assert all("--mpp" in problem for problem in found.problems if mpp is None)


def test_absurd_resolution_is_explained() -> None:
    assert resolve_mpp(None, None, (352.78, 352.78)).problems[0].startswith("The TIFF tags state 352.8 µm/px (72 dpi)")


def test_pixels_that_are_not_square() -> None:
    assert resolve_mpp(None, (0.5, 0.25), None).problems == ("The pixels are not square: 0.5 × 0.25 µm.",)
    assert resolve_mpp(None, (28.969, 28.968), None).problems == ()
    assert resolve_mpp(GivenResolution((0.5, 0.4)), None, None).problems == (
        "The pixels are not square: 0.5 × 0.4 µm.",
    )


def test_the_resolution_of_the_slide_may_be_repeated() -> None:
    assert resolve_mpp(GivenResolution((0.25, 0.25)), (0.2525, 0.2525), None).problems == ()
    assert "replaces 0.5 µm/px" in resolve_mpp(GivenResolution((0.25, 0.25)), (0.5, 0.5), None).problems[0]


@pytest.mark.parametrize("value", [0, -1, 0.001, 51, math.nan, math.inf, "x", (0.5,), (1, 1, 1), (0.5, -1), [], {}])
def test_stated_resolution_has_to_be_one(value) -> None:
    with pytest.raises(OptionError, match="--mpp"):
        check_mpp(value)


def test_stated_resolution() -> None:
    assert check_mpp(None) == GivenResolution(None)
    assert check_mpp(1) == GivenResolution((1.0, 1.0))
    assert check_mpp([0.5, 0.25], "--ihc-mpp") == GivenResolution((0.5, 0.25), "--ihc-mpp")


def test_messages_name_what_states_the_resolution() -> None:
    with pytest.raises(OptionError, match=r"^--ihc-mpp 90: "):
        check_mpp(90, "--ihc-mpp")
    for own, tags in ((None, None), ((0.0001, 0.0001), None), (None, (352.78, 352.78))):
        found = resolve_mpp(GivenResolution(option="--ihc-mpp"), own, tags)
        assert "give it with --ihc-mpp (" in found.problems[0]
        assert found.option == "--ihc-mpp"


OME = """<?xml version="1.0"?><OME xmlns="…"><Instrument ID="I">
<Objective ID="O" NominalMagnification="20.0"/></Instrument><Image>
<Pixels SizeX="10" PhysicalSizeX="0.25" PhysicalSizeXUnit="µm"
PhysicalSizeY="250" PhysicalSizeYUnit="nm"/></Image></OME>"""


def test_ome_xml() -> None:
    (image,) = parse_ome_xml(OME).images
    assert image.mpp == (0.25, 0.25)
    assert image.magnification == 20.0
    assert image.problems == ()


@pytest.mark.parametrize(
    ("text", "problem"), [(OME.replace("250", "many"), "not a number"), (OME.replace("nm", "furlong"), "'furlong'")]
)
def test_ome_xml_that_does_not_say_the_resolution(text: str, problem: str) -> None:
    (image,) = parse_ome_xml(text).images
    assert image.mpp is None
    assert problem in image.problems[0]


@pytest.mark.parametrize("text", ["", "Aperio", "<OME", "<OME><Pixels>", "<OME>" * 9999])
def test_ome_xml_that_is_not_xml(text: str) -> None:
    with pytest.raises(XmlError):
        parse_ome_xml(text)


@pytest.mark.parametrize(
    ("value", "number"),
    [("0.5", 0.5), (2, 2.0), (None, None), ("", None), ("nan", None), ("inf", None), ("-1", None), (0, None)],
)
def test_positive_number(value, number) -> None:
    assert positive_number(value) == number


def test_a_resolution_that_does_not_fit_the_objective() -> None:
    (problem,) = resolve_mpp(None, (5.0, 5.0), None, 40).problems
    assert problem.endswith("If the resolution is wrong, give the right one with --mpp.")
    (problem,) = resolve_mpp(GivenResolution((5.0, 5.0)), None, None, 40).problems
    assert problem.endswith("If the resolution is wrong, check --mpp.")
