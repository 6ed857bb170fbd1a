"""Small networks that behave like trained ones: random weights, statistics of what they are shown."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.fused_resnet import to_network
from wsi2ihc.models.networks import ResnetGenerator
from wsi2ihc.models.normalization import estimate_statistics


@pytest.fixture(scope="session")
def image() -> RGBImage:
    """900×1000 px of colored noise at several scales, as bright as tissue."""
    rng = np.random.default_rng(7)
    height, width = 900, 1000
    layers = [
        cv2.resize(
            rng.normal(0, 30, (height // step, width // step, 3)), (width, height), interpolation=cv2.INTER_CUBIC
        )
        for step in (2, 10, 50)
    ]
    return np.clip(np.array([200, 150, 190]) + sum(layers), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def strong(image: RGBImage) -> Callable[..., ResnetGenerator]:
    """Return a function that makes ResNets (16 wide) whose output for the image has the contrast of a real stain."""

    def make(seed: int = 0, on: RGBImage | None = None, **options: object) -> ResnetGenerator:
        torch.manual_seed(seed)
        module = ResnetGenerator(**({"width": 16} | options))  # type: ignore[arg-type]
        source = image if on is None else on
        positions = [
            (y, x)
            for y in np.linspace(0, source.shape[0] - 96, 3, dtype=int)
            for x in np.linspace(0, source.shape[1] - 96, 3, dtype=int)
        ]
        crops = np.stack([source[y : y + 96, x : x + 96] for y, x in positions])
        batch = to_network(torch.from_numpy(crops))
        frozen = estimate_statistics(module, [batch]).module
        assert isinstance(frozen, ResnetGenerator)
        head = frozen.model[-2]
        assert isinstance(head, nn.Conv2d)
        with torch.inference_mode():
            spread = frozen(batch[:3]).atanh().std()
        with torch.no_grad():
            head.weight.mul_(0.3 / spread)  # about 35 gray levels
        return frozen.eval()

    return make
