"""The network against another implementation's numbers, the resize against TensorFlow's rule, and wrong files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from wsi2ihc.errors import DatasetError, ModelError, OptionError
from wsi2ihc.models.model_spec import file_sha256
from wsi2ihc.training.metrics import inception
from wsi2ihc.training.metrics.inception import (
    InceptionFeatures,
    InceptionMetadata,
    features,
    load_inception,
    to_inception,
)

State = dict[str, Tensor]


def hashed(start: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [-1, 1) that follow from integers alone, whatever the version of a random generator."""
    value = np.arange(start, start + count, dtype=np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        value ^= value >> np.uint32(shift)
        value *= np.uint32(factor)
    return value / 2**31 - 1


def empty_network() -> InceptionFeatures:
    with torch.device("meta"):
        return InceptionFeatures(InceptionMetadata(""))


def seeded_weights() -> State:
    """Weights for all names in the order of the alphabet, of a size that keeps activations near 1."""
    state, start = {}, 0
    for name, empty in sorted(empty_network().state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        value = hashed(start, empty.numel()).reshape(tuple(empty.shape))
        start += value.size
        if value.ndim > 1:
            value *= np.sqrt(6 / np.prod(value.shape[1:]))
        elif name.endswith(("running_var", "bn.weight")):
            value = 1 + value / 2
        else:
            value /= 5
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


def seeded_image(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Noise over a slope in each channel, so that no direction and no channel is like another."""
    rows, columns = size
    down, across = np.mgrid[:rows, :columns]
    slopes = np.stack([128 * down // rows, 128 * across // columns, 64 * (down + across) // (rows + columns)], -1)
    noise = (hashed(0, rows * columns * 3).reshape(rows, columns, 3) + 1) * 63
    return (slopes + noise.astype(np.int64)).astype(np.uint8)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InceptionFeatures]:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(seeded_weights(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256", file_sha256(path))
        loaded = load_inception(path)
    path.unlink()
    return loaded


def test_features_match_torch_fidelity(network: InceptionFeatures) -> None:
    """Every 256th feature of an image, the mean of all, and their norm.

    The expected numbers are what torch-fidelity 0.4.0 (``FeatureExtractorInceptionV3``, layer "2048", float32, on a CPU
    with torch 2.13) gave for this image, with `seeded_weights` saved and named as its weights file.
    """
    some = [0.47212616, 2.2413397, 0.48052675, 1.4808406, 0.0, 5.8615093, 3.4804435, 0.1127322]
    found = features(network, seeded_image((40, 56))[np.newaxis]).astype(np.float64)
    assert found.shape == (1, 2048)
    np.testing.assert_allclose(found[0, ::256], some, rtol=1e-5, atol=1e-5)
    assert found.mean() == pytest.approx(1.6978699890, rel=1e-6)
    assert np.linalg.norm(found) == pytest.approx(136.34831890, rel=1e-6)


def test_names_and_shapes_match_the_published_file() -> None:
    """The hash is of the names and shapes in torch-fidelity 0.4.0's network, sorted, one a line."""
    shapes = {name: tuple(value.shape) for name, value in empty_network().state_dict().items()}
    lines = [f"{name} {shape}" for name, shape in sorted(shapes.items()) if not name.endswith("num_batches_tracked")]
    assert len(lines) == 472
    known = "d84f693f2abd7fea61cb31c87d3b2f268bf707c1bae1db219afdad3363959cb0"
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == known


def test_metadata_of_loaded_weights(network: InceptionFeatures) -> None:
    assert len(network.metadata.sha256) == 64
    assert network.metadata.layer == "2048-d final average pooling"
    assert "TensorFlow 1" in network.metadata.resize
    assert not network.training
    assert not any(one.requires_grad for one in network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (298, 300), (512, 299)])
def test_resize_matches_tensorflow_1(size: tuple[int, int]) -> None:
    """Sample i lies at i · size / 299: upper left corners are aligned, and the last neighbor is repeated."""
    image = seeded_image(size)
    expected = image.astype(np.float64)
    for axis in (0, 1):
        places = np.arange(299) * size[axis] / 299
        before = np.floor(places + 1e-9).astype(int)
        after = np.minimum(before + 1, size[axis] - 1)
        share = (places - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        expected = expected.take(before, axis) * (1 - share) + expected.take(after, axis) * share
    (found,) = to_inception(torch.from_numpy(image[np.newaxis])).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, (expected - 128) / 128, atol=1e-4)


def test_images_of_the_input_size_are_not_resized() -> None:
    image = seeded_image((299, 299))
    (found,) = to_inception(torch.from_numpy(image[np.newaxis])).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found * 128 + 128, image)


class MeanColors(InceptionFeatures):
    """Stands in for the network: the mean of each channel, in every feature, times ``factor``."""

    def __init__(self, factor: float = 1) -> None:
        nn.Module.__init__(self)
        self.fc = nn.Linear(1, 1)
        self.factor = factor
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x.mean((2, 3)).repeat(1, 683)[:, :2048] * self.factor


def test_batches_keep_the_order_of_images() -> None:
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 64, 128, 192, 255)])
    images[..., 1] = 128
    images.flags.writeable = False
    network = MeanColors()
    found = features(network, images, batch_size=2)
    assert network.batches == [2, 2, 1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], [-1, -0.5, 0, 0.5, 127 / 128])
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_array_equal(features(network, images[::-1, ::2]), found[::-1])
    assert features(network, images[:0]).shape == (0, 2048)


def test_other_arrays_than_rgb_images_are_an_error() -> None:
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(DatasetError, match="takes uint8 RGB"):
            features(MeanColors(), wrong)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="takes uint8 RGB"):
        features(MeanColors(), np.zeros((1, 0, 8, 3), np.uint8))


def test_infinite_features_are_an_error() -> None:
    with pytest.raises(ModelError, match="not finite"):
        features(MeanColors(float("nan")), np.zeros((1, 8, 8, 3), np.uint8))


def message(path: Path) -> str:
    """Return the message of the error that loading raises, which is one line."""
    with pytest.raises((ModelError, OptionError)) as caught:
        load_inception(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_or_other_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    assert "there is no file" in message(path)
    assert "there is no file" in message(tmp_path)
    path.write_bytes(b"other weights")
    assert f"begins with {file_sha256(path)[:8]} instead of 6726825d" in message(path)
    with pytest.raises(OptionError):
        load_inception(tmp_path / "none.pth")
    with pytest.raises(ModelError):
        load_inception(path)


def saved(content: Any, path: Path, patch: pytest.MonkeyPatch) -> Path:
    """A file whose hash passes."""
    torch.save(content, path)
    patch.setattr(inception, "SHA256", file_sha256(path))
    return path


def test_weights_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    whole = {name: torch.zeros(()).expand(value.shape) for name, value in empty_network().state_dict().items()}
    for content, expected in (
        ([1, 2], "a list of something else"),
        ({"epoch": 3}, "a dict of something else"),
        ({}, "lacks Conv2d_1a_3x3.bn.bias (472 such)"),
        ({name: value for name, value in whole.items() if name != "fc.bias"}, "lacks fc.bias (1 such)"),
        (whole | {"AuxLogits.fc.weight": torch.zeros(1)}, "has AuxLogits.fc.weight (1 such)"),
        (
            whole | {"fc.weight": torch.zeros(1000, 2048)},
            "fc.weight has the shape (1000, 2048) instead of (1008, 2048)",
        ),
    ):
        assert expected in message(saved(content, path, monkeypatch))


def test_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"fc.bias": torch.zeros(1008)}, tmp_path / "weights.pth", monkeypatch)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:500], whole[:-100]):
        path.write_bytes(damaged)
        monkeypatch.setattr(inception, "SHA256", file_sha256(path))
        assert "is damaged" in message(path)


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    assert "are not opened" in message(saved({"fc.bias": Bomb()}, tmp_path / "weights.pth", monkeypatch))
    assert not (tmp_path / "exploded").exists()
