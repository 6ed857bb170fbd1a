"""Choosing devices and precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wsi2ihc.errors import DeviceError
from wsi2ihc.models import device as module
from wsi2ihc.models.device import choose_precision, cpu_has_fast_bf16, free_memory_bytes, one_device, parse_devices

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, tuple[int, int]], None]:
    """Pretends that there are so many GPUs of that compute capability."""

    def pretend(count: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)

    return pretend


def test_cpu() -> None:
    assert parse_devices("cpu") == [CPU]
    assert parse_devices(" CPU ") == [CPU]
    assert one_device("cpu") == CPU
    assert one_device(CPU) == CPU
    assert free_memory_bytes(CPU) is None


def test_auto_takes_one_gpu_if_there_is_one(gpus: Callable[..., None]) -> None:
    gpus(2)
    assert parse_devices("auto") == [GPU]
    assert parse_devices("cuda") == [GPU]
    assert parse_devices("cuda:1,0") == [torch.device("cuda", 1), GPU]
    with pytest.raises(DeviceError, match="several"):
        one_device("cuda:0,1")


def test_auto_without_gpu(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert parse_devices("auto") == [CPU]
    with pytest.raises(DeviceError, match=r"no usable Apple GPU.*--device cpu"):
        parse_devices("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert parse_devices("auto") == parse_devices("mps") == [torch.device("mps")]


def test_missing_gpus_are_explained(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    with pytest.raises(DeviceError, match="CUDA device 2 is missing; there are 2"):
        parse_devices("cuda:0,2")
    with pytest.raises(DeviceError, match="given twice"):
        parse_devices("cuda:1,1")
    gpus(0)
    with pytest.raises(DeviceError, match="no working GPU and driver; use --device cpu"):
        parse_devices("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceError, match=r"CPU build.*--device cpu"):
        parse_devices("cuda:0")


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:a", "cuda:0,", "cuda:-1", "cuda:0;1", "cpu:0"])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        parse_devices(text)


def test_automatic_precision_on_gpus(gpus: Callable[..., None]) -> None:
    found = {}
    for capability in ((6, 1), (7, 0), (7, 5), (8, 0), (9, 0)):
        gpus(1, capability)
        found[capability] = choose_precision("auto", GPU)
    assert found == {(6, 1): "fp32", (7, 0): "fp16", (7, 5): "fp16", (8, 0): "bf16", (9, 0): "bf16"}


def test_automatic_precision_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    monkeypatch.setattr(module, "cpu_has_fast_bf16", lambda: True)
    assert choose_precision("auto", CPU) == "bf16"
    monkeypatch.setattr(module, "cpu_has_fast_bf16", lambda: False)
    assert choose_precision("auto", CPU) == "fp32"


def test_torch_and_linux_agree_on_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("this system has no /proc/cpuinfo")
    by_torch = cpu_has_fast_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_fast_bf16() == by_torch


@pytest.mark.parametrize(
    ("wanted", "device", "words"),
    [
        ("fp16", CPU, "do not support float16"),
        ("bf16", torch.device("mps"), "Apple GPU"),
        ("fp64", CPU, "unknown precision 'fp64'"),
        ("", GPU, "unknown precision"),
    ],
)
def test_unsupported_precisions_are_refused(wanted: str, device: torch.device, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        choose_precision(wanted, device)


def test_a_requested_precision_is_kept() -> None:
    assert choose_precision("fp32", GPU) == "fp32"
    assert choose_precision("fp16", GPU) == "fp16"
    assert choose_precision("bf16", CPU) == "bf16"
