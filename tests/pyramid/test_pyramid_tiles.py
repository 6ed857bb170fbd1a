"""Padding and halving of single tiles."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyramid_synthetic import halved

from wsi2ihc.geometry import Size
from wsi2ihc.pyramid.levels import halve_into, pad_edges


def random_tile(seed: int, side_px: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 48, 64, 512, 1024]))
def test_halving_is_the_rounded_mean_and_what_pillow_does(seed: int, side_px: int) -> None:
    tile = random_tile(seed, side_px)
    half = np.zeros((side_px // 2, side_px // 2, 3), np.uint8)
    halve_into(tile, half)
    np.testing.assert_array_equal(half, halved(tile))
    np.testing.assert_array_equal(half, np.asarray(Image.fromarray(tile).reduce(2)))


def test_halving_rounds_every_sum_of_four_half_up() -> None:
    sums = np.arange(4 * 255 + 1)
    four = np.stack([(sums + extra) // 4 for extra in range(4)])  # four values that add up to each sum
    tile = np.zeros((64, 64, 3), np.uint8)
    quads = tile.reshape(32, 2, 32, 2, 3)
    for index, values in enumerate(four.T[:1024]):
        quads[index // 32, :, index % 32, :, 1] = values.reshape(2, 2)
    half = np.zeros((32, 32, 3), np.uint8)
    halve_into(quads.reshape(64, 64, 3), half)
    np.testing.assert_array_equal(half[..., 1].ravel()[: sums.size], (sums + 2) // 4)


def test_halving_writes_into_its_quadrant_and_nowhere_else() -> None:
    parent = random_tile(1)
    before = parent.copy()
    halve_into(random_tile(2), parent[32:, :32])
    np.testing.assert_array_equal(parent[32:, :32], halved(random_tile(2)))
    np.testing.assert_array_equal(parent[:32], before[:32])
    np.testing.assert_array_equal(parent[32:, 32:], before[32:, 32:])


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 64))
def test_padding_repeats_the_edge_of_the_valid_part(width: int, height: int) -> None:
    tile = random_tile(3)
    expected = np.pad(tile[:height, :width], ((0, 64 - height), (0, 64 - width), (0, 0)), mode="edge")
    np.testing.assert_array_equal(pad_edges(tile, Size(width, height)), expected)


def test_padding_leaves_a_read_only_tile_alone() -> None:
    tile = random_tile(4)
    tile.flags.writeable = False
    padded = pad_edges(tile, Size(3, 5))
    np.testing.assert_array_equal(tile, random_tile(4))
    np.testing.assert_array_equal(padded[5:, 3:], np.broadcast_to(tile[4, 2], (59, 61, 3)))
