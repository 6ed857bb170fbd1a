"""Estimates of memory and parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny, tiny_pairs
from torch import nn

from wsi2ihc.training.training_setup import estimate_resources, prepare, saved_values


def test_saved_tensors_are_counted_once() -> None:
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    image = torch.empty(2, 3, 8, 8, device="meta")
    assert saved_values(convolution.to("meta"), image) == image.numel()
    # the sigmoid saves its output, and the second convolution saves the same tensor
    both = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sigmoid(), nn.Conv2d(5, 1, 1)).to("meta")
    assert saved_values(both, image) == image.numel() + 2 * 5 * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs"))


def test_memory_is_proportional_to_the_batch(folder: Path) -> None:
    one, other = (estimate_resources(prepare(folder, tiny(batch_size=size))) for size in (2, 4))
    assert one.weights_bytes == other.weights_bytes
    assert other.activations_bytes == pytest.approx(2 * one.activations_bytes, rel=0.01)
    assert one.memory_bytes == one.weights_bytes + one.activations_bytes
    halves = estimate_resources(prepare(folder, tiny(batch_size=4, processes=2)))
    assert halves.activations_bytes == one.activations_bytes
    assert halves.processes == 2


def test_half_precision_halves_activations(folder: Path) -> None:
    one, other = (estimate_resources(prepare(folder, tiny(precision=precision))) for precision in ("fp32", "bf16"))
    assert one.activations_bytes == 2 * other.activations_bytes


def test_parameter_counts_match_the_networks(folder: Path) -> None:
    outlook = estimate_resources(prepare(folder, tiny(ngf=64, ndf=64, depth=9)))
    assert (outlook.generator_parameters, outlook.discriminator_parameters) == (11_383_427, 2_768_705)
