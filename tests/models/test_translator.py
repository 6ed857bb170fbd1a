"""Translators over networks: shapes, exactness, precision, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi2ihc.errors import DeviceMemoryError, ModelError
from wsi2ihc.geometry import RGBImage, ceil_to
from wsi2ihc.models.fused_resnet import to_centered, to_network, to_pixels
from wsi2ihc.models.inference import TorchTranslator
from wsi2ihc.models.networks import ResnetGenerator, UnetGenerator

Strong = Callable[..., ResnetGenerator]

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU")


def test_pixels_survive_a_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_pixels(to_network(torch.from_numpy(levels))).numpy(), levels)


def test_values_are_rounded_to_the_nearest_pixel_and_kept_in_range() -> None:
    levels = torch.tensor([0.49, 0.51, 254.4, 254.6, -3.0, 300.0])
    values = (levels / 127.5 - 1).reshape(1, 3, 1, 2)
    assert to_pixels(values).permute(0, 3, 1, 2).flatten().tolist() == [0, 1, 254, 255, 0, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_centered_pixels_are_exact(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).reshape(1, 16, 16, 3)
    center = torch.tensor([0.0, 171.0, 255.0])
    found = to_centered(levels, center.to(dtype)).float()
    assert torch.equal(found, levels.permute(0, 3, 1, 2).float() - center[:, None, None])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    values = torch.zeros(1, 3, 4, 4)
    values[0, 1, 2, 3] = value
    with pytest.raises(ModelError, match="not finite"):
        to_pixels(values)


def test_an_exact_translator(strong: Strong, image: RGBImage) -> None:
    module = strong(blocks=3, width=8)
    translator = TorchTranslator(module, torch.device("cpu"), "fp32", exact=True)
    halo = translator.halo_px
    assert translator.is_exact
    assert (translator.stride_px, translator.multiple_px) == (4, 4)
    windows = image[np.newaxis, :320, :400]
    cores = translator(windows)
    assert cores.dtype == np.uint8
    assert cores.shape == (1, 320 - 2 * halo, 400 - 2 * halo, 3)
    with torch.inference_mode():
        values = module(to_network(torch.from_numpy(windows.copy())))[0, :, halo:-halo, halo:-halo]
    assert np.abs(cores[0] - (values.permute(1, 2, 0).numpy() + 1) * 127.5).max() < 0.51


@pytest.mark.parametrize("core", [4, 8, 36, 100, 332])
def test_tiled_equals_whole_down_to_tiny_cores(strong: Strong, image: RGBImage, core: int) -> None:
    """Windows too small for the usual kernels are done in larger ones; what is beyond them does not matter."""
    translator = TorchTranslator(strong(blocks=9, width=8), "cpu", "fp32", exact=True)
    halo = translator.halo_px
    whole = translator(image[np.newaxis])[0]
    for y, x in ((0, 0), (4, 116), (240, 304)):
        side = core + 2 * halo
        part = translator(image[np.newaxis, y : y + side, x : x + side])[0]
        np.testing.assert_array_equal(part, whole[y : y + core, x : x + core])


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Three threads of PyTorch; the other tests use one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("three_threads")
def test_tiled_equals_whole_in_several_threads(strong: Strong, image: RGBImage) -> None:
    test_tiled_equals_whole_down_to_tiny_cores(strong, image, 100)


def test_additional_context_changes_nothing(strong: Strong, image: RGBImage) -> None:
    translator = TorchTranslator(strong(blocks=1), "cpu", "fp32", exact=True)
    smaller = translator(image[np.newaxis, :300, :300])[0]
    larger = translator(image[np.newaxis, :344, :380])[0]
    np.testing.assert_array_equal(larger[: smaller.shape[0], : smaller.shape[1]], smaller)


def test_noncontiguous_windows_are_translated(strong: Strong, image: RGBImage) -> None:
    """Read-only, or a view with gaps."""
    translator = TorchTranslator(strong(blocks=1, width=8), "cpu", "fp32", exact=True)
    expected = translator(image[np.newaxis, 20:340, 40:360])
    frozen = image[np.newaxis, 20:340, 40:360].copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(translator(frozen), expected)
    assert translator(np.empty((0, 320, 320, 3), np.uint8)).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 322, 320, 3)])
def test_windows_of_invalid_sizes_are_refused(strong: Strong, shape: tuple[int, ...]) -> None:
    translator = TorchTranslator(strong(blocks=9, width=2), "cpu", "fp32", exact=True)
    with pytest.raises(ValueError, match="windows of"):
        translator(np.zeros(shape, np.uint8))


def test_a_blended_translator_pads_by_itself(image: RGBImage) -> None:
    torch.manual_seed(0)
    module = ResnetGenerator(1, 4, "instance", dropout=False)
    translator = TorchTranslator(module, "cpu", "fp32", exact=False)
    assert (translator.halo_px, translator.stride_px, translator.is_exact) == (0, 4, False)
    windows = image[np.newaxis, :64, :96]
    output = translator(windows)
    with torch.inference_mode():
        values = module.eval()(to_network(torch.from_numpy(windows.copy())))
    assert np.array_equal(output, to_pixels(values).numpy())


def test_a_local_network_that_cannot_be_fused_is_exact(image: RGBImage) -> None:
    torch.manual_seed(0)
    module = UnetGenerator(5, 2).eval().double().float()
    translator = TorchTranslator(module, "cpu", "fp32", exact=True)
    assert (translator.halo_px, translator.stride_px) == (96, 32)
    whole = translator(image[np.newaxis, :512, :480])[0].astype(int)
    part = translator(image[np.newaxis, 64:512, 32:416])[0].astype(int)
    assert np.abs(part - whole[64 : 512 - 192, 32 : 416 - 192]).max() <= 1


def test_exactness_requires_a_local_network() -> None:
    with pytest.raises(ModelError, match=r"InstanceNorm2d.*blend overlapping windows"):
        TorchTranslator(ResnetGenerator(1, 1, "instance").eval(), "cpu", "fp32", exact=True)


def test_the_module_is_unchanged(strong: Strong) -> None:
    module = strong(blocks=1, width=2)
    for exact in (True, False):
        TorchTranslator(module, "cpu", "bf16", exact=exact)
    assert all(one.dtype == torch.float32 for one in module.parameters())


def test_networks_in_training_mode_are_not_local() -> None:
    with pytest.raises(ModelError, match="statistics of its input"):
        TorchTranslator(ResnetGenerator(1, 1, dropout=False).train(), "cpu", "fp32", exact=True)


class Cramped(nn.Module):
    """Gives its input back, in batches of no more than so many images."""

    halo_px = 0

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.room = room
        self.error = error
        self.seen: list[int] = []

    def forward(self, windows: Tensor) -> Tensor:
        self.seen.append(len(windows))
        if len(windows) > self.room:
            raise self.error
        return windows


MEMORY_ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory"),
]


def cramped(room: int, error: Exception) -> tuple[TorchTranslator, Cramped]:
    translator = TorchTranslator(ResnetGenerator(1, 1, "instance"), "cpu", "fp32", exact=False)
    network = Cramped(room, error)
    translator._network = network  # type: ignore[assignment]
    translator._batch_limit = None  # as on a GPU
    return translator, network


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=["cuda", "cpu", "mps"])
def test_out_of_memory_halves_the_batch(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    translator, network = cramped(3, error)
    windows = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(translator(windows), windows)
    assert network.seen == [10, 5, 2, 2, 2, 2, 2]
    assert "continuing with 2" in caplog.text
    network.seen.clear()
    np.testing.assert_array_equal(translator(windows[:5]), windows[:5])
    assert network.seen == [2, 2, 1]


def test_out_of_memory_with_a_single_window_is_an_error() -> None:
    translator, network = cramped(0, MEMORY_ERRORS[0])
    with pytest.raises(DeviceMemoryError, match="single window of 12×8 px; lower --max-memory"):
        translator(np.zeros((3, 8, 12, 3), np.uint8))
    assert network.seen == [3, 1]


def test_other_errors_do_not_count_as_out_of_memory() -> None:
    translator, network = cramped(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        translator(np.zeros((3, 8, 8, 3), np.uint8))
    assert network.seen == [3]


def test_memory_of_the_full_network_is_bounded() -> None:
    """Measured as resident memory at 1,200 px: 109 to 126 bytes per px in fp32, 78 to 87 in bf16, 520 blended."""
    module = ResnetGenerator().eval()
    for precision, exact, low, high in (("fp32", True, 105, 140), ("bf16", True, 75, 100), ("fp32", False, 500, 640)):
        translator = TorchTranslator(module, "cpu", precision, exact=exact)  # type: ignore[arg-type]
        assert low < translator.bytes_per_px < high


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize(("precision", "mean", "highest"), [("fp32", 0.01, 1), ("bf16", 0.5, 8), ("fp16", 0.2, 4)])
def test_a_gpu_gives_the_pixels_of_the_cpu(
    strong: Strong, image: RGBImage, precision: str, mean: float, highest: int
) -> None:
    module = strong(width=64)
    expected = TorchTranslator(module, "cpu", "fp32", exact=True)(image[np.newaxis, :600, :600]).astype(int)
    translator = TorchTranslator(module, "cuda", precision, exact=True)  # type: ignore[arg-type]
    difference = np.abs(translator(image[np.newaxis, :600, :600]) - expected)
    assert difference.mean() <= mean
    assert difference.max() <= highest


@pytest.mark.gpu
@without_gpu
def test_tiled_equals_whole_on_a_gpu(strong: Strong, image: RGBImage) -> None:
    """To a gray level now and then: kernels may differ between sizes."""
    translator = TorchTranslator(strong(width=64), "cuda", "fp32", exact=True)
    halo = translator.halo_px
    whole = translator(image[np.newaxis, :840, :960])[0].astype(int)
    for y, x, rows, columns in ((0, 0, 400, 400), (4, 116, 444, 300), (240, 304, 512, 600)):
        part = translator(image[np.newaxis, y : y + rows, x : x + columns])[0]
        difference = np.abs(part - whole[y : y + rows - 2 * halo, x : x + columns - 2 * halo])
        assert difference.max() <= 1
        assert difference.mean() < 1e-3


@pytest.mark.gpu
@without_gpu
def test_out_of_memory_on_a_gpu(strong: Strong) -> None:
    translator = TorchTranslator(strong(width=64), "cuda", "fp32", exact=True)
    free, _ = torch.cuda.mem_get_info()
    side = ceil_to(2000, 4)
    count = int(2.5 * free / (translator.bytes_per_px * side * side)) + 1
    cores = translator(np.full((count, side, side, 3), 200, np.uint8))
    assert cores.shape[0] == count
    assert (cores == cores[0]).all()
