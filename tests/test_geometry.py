"""Rectangle algebra."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi2ihc.geometry import Region, Size, ceil_to, floor_to, halved

coordinates = st.integers(-1000, 1000)
lengths = st.integers(0, 500)
regions = st.builds(Region, coordinates, coordinates, lengths, lengths)


@given(regions, regions)
def test_intersection_is_commutative_and_lies_in_both(a: Region, b: Region) -> None:
    shared = a.intersection(b)
    assert shared.is_empty == b.intersection(a).is_empty
    if not shared.is_empty:
        assert shared == b.intersection(a)
        assert a.contains(shared)
        assert b.contains(shared)


@given(regions, regions, coordinates, coordinates)
def test_a_pixel_is_in_the_intersection_exactly_if_it_is_in_both(a: Region, b: Region, x: int, y: int) -> None:
    def inside(region: Region) -> bool:
        return region.x <= x < region.right and region.y <= y < region.bottom

    assert inside(a.intersection(b)) == (inside(a) and inside(b))


@given(regions, coordinates, coordinates)
def test_shifting_back_restores(region: Region, dx: int, dy: int) -> None:
    assert region.shifted(dx, dy).shifted(-dx, -dy) == region


@given(regions, st.integers(0, 100))
def test_growing_contains_and_shrinking_undoes(region: Region, margin: int) -> None:
    grown = region.grown(margin)
    assert grown.contains(region)
    assert grown.grown(-margin) == region


@given(st.integers(-(10**9), 10**9), st.integers(1, 10_000))
def test_rounding_to_multiples(value: int, multiple: int) -> None:
    assert floor_to(value, multiple) <= value <= ceil_to(value, multiple)
    assert floor_to(value, multiple) % multiple == ceil_to(value, multiple) % multiple == 0
    assert ceil_to(value, multiple) - floor_to(value, multiple) in (0, multiple)


def test_slices_address_the_same_pixels() -> None:
    frame, part = Region(-10, 5, 40, 30), Region(0, 7, 3, 4)
    assert part.slices_in(frame) == (slice(2, 6), slice(10, 13))
    with pytest.raises(ValueError, match="does not lie in"):
        Region(-11, 5, 3, 3).slices_in(frame)


@pytest.mark.parametrize(("width", "half"), [(1, 1), (2, 1), (3, 2), (511, 256), (512, 256), (513, 257)])
def test_levels_round_up(width: int, half: int) -> None:
    assert halved(Size(width, 2 * width)) == Size(half, width)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 px"):
        Size(0, 5)
    with pytest.raises(ValueError, match="negative"):
        Region(0, 0, -1, 5)
