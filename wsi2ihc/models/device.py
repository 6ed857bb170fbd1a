"""Compute devices, and the precision they support."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch

from ..errors import DeviceError

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_FAST_BF16 = ("amx_bf16", "avx512_bf16")


def parse_devices(text: str) -> list[torch.device]:
    """Parse a choice of devices: "auto", "cpu", "mps", "cuda" (the first GPU), "cuda:1", or several as "cuda:0,1".

    "auto" chooses the first GPU, else an Apple GPU, else the CPU. Several GPUs are used only if their numbers are
    given, since other programs may be using them. Raises `DeviceError` if the choice is invalid, or a device is
    missing.
    """
    choice = text.strip().lower()
    if choice == "auto":
        if torch.cuda.is_available():
            return [torch.device("cuda", 0)]
        return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]
    if choice == "cpu":
        return [torch.device("cpu")]
    if choice == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("torch finds no usable Apple GPU; use --device cpu")
        return [torch.device("mps")]
    match = re.fullmatch(r"cuda(?::(\d{1,3}(?:,\d{1,3})*))?", choice)
    if match is None:
        raise DeviceError(f"unknown device {text!r:.40}; choose auto, cpu, cuda, cuda:0,1 or mps")
    numbers = [int(one) for one in (match[1] or "0").split(",")]
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceError("no CUDA device: this torch is a CPU build; install a CUDA build, or use --device cpu")
    if not torch.cuda.is_available():
        raise DeviceError("no CUDA device: torch finds no working GPU and driver; use --device cpu")
    if len(set(numbers)) < len(numbers):
        raise DeviceError("a CUDA device is given twice; give each once, as in cuda:0,1")
    if max(numbers) >= (count := torch.cuda.device_count()):
        raise DeviceError(f"CUDA device {max(numbers)} is missing; there are {count}, counted from 0")
    return [torch.device("cuda", number) for number in numbers]


def one_device(device: str | torch.device) -> torch.device:
    """Parse a single device.

    Raises `DeviceError` as `parse_devices`, or if several are given.
    """
    if isinstance(device, torch.device):
        return device
    devices = parse_devices(device)
    if len(devices) > 1:
        raise DeviceError(f"{device} names several devices where one is needed")
    return devices[0]


def choose_precision(choice: str, device: torch.device) -> Precision:
    """Choose the precision: as requested, or for "auto" the fastest that the device supports in hardware.

    That is bf16 on CPUs with AMX or AVX-512 BF16 and on GPUs from compute capability 8.0 on, fp16 on GPUs from 7.0 on,
    and fp32 on all others. Raises `DeviceError` if the precision is unknown, or the device does not support it.
    """
    if choice == "auto":
        return _best_precision(device)
    precision = next((one for one in DTYPES if one == choice), None)
    if precision is None:
        raise DeviceError(f"unknown precision {choice!r:.40}; choose auto, fp32, bf16 or fp16")
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("CPUs do not support float16; use --precision bf16 or fp32")
    if precision != "fp32" and device.type == "mps":
        raise DeviceError("on an Apple GPU only --precision fp32 is supported")
    return precision


def _best_precision(device: torch.device) -> Precision:
    if device.type == "cpu":
        return "bf16" if cpu_has_fast_bf16() else "fp32"
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    return "fp32"


def cpu_has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (AMX or AVX-512 BF16)."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # missing in older torch
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in _FAST_BF16)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
    return any(name in flags for name in _FAST_BF16)


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU; None if unknown (CPUs, Apple GPUs)."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.mem_get_info(device)[0])
