"""ResNet-9 for benchmarks, with random weights that behave like trained ones on real tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Context
from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.model_file import save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.networks import ResnetGenerator
from wsi2ihc.models.normalization import estimate_statistics


def tissue(context: Context) -> RGBImage:
    """Return the pixels of the real slide, (rows, columns, 3)."""
    from wsi2ihc.geometry import Region
    from wsi2ihc.slide import open_slide

    with open_slide(context.slide) as slide:
        size = slide.info.size
        return slide.read_level(0, Region(0, 0, size.width, size.height))


def random_resnet(context: Context, *, seed: int = 0, norm: str = "batch") -> torch.nn.Module:
    """Return random weights at full strength, batch statistics of real tissue, and an output that spans the gray range.

    With the usual small initial weights every halo would do; here a halo of 16 px shows.
    """
    torch.manual_seed(seed)
    module = ResnetGenerator(blocks=9, width=64, norm=norm, dropout=False)  # type: ignore[arg-type]
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            _smooth(layer.weight)
    if norm != "batch":
        return module.eval()
    pixels = tissue(context)
    crops = [pixels[y : y + 256, x : x + 256] for y in (600, 1200, 1800) for x in (300, 900, 1500)]
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    frozen = estimate_statistics(module, [batch]).module
    # The last layer has no norm: scale it so that tanh is neither flat nor saturated.
    head = [layer for layer in frozen.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    answers: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _layer, _inputs, answer: answers.append(answer))
    with torch.inference_mode():
        frozen(batch[:4])
    hook.remove()
    with torch.no_grad():
        head.weight.mul_(0.7 / answers[0].std())
    return frozen.eval()


def _smooth(weight: torch.Tensor) -> None:
    """Smooth the kernels, like those of trained networks.

    A network of white noise makes texture so rough that no seam could be seen in it.
    """
    offset = torch.arange(weight.shape[-1]) - (weight.shape[-1] - 1) / 2
    window = torch.exp(-(offset**2) / 2)
    with torch.no_grad():
        weight.copy_(
            weight.mean((2, 3), keepdim=True) * window[:, None] * window[None, :] * weight.shape[-1] + 0.2 * weight
        )


def checkpoint(context: Context, *, norm: str = "batch") -> Path:
    """Save the network as a file for `load_model`, once."""
    path = context.work / f"resnet9-{norm}-smooth.safetensors"
    if not path.exists():
        spec = GeneratorSpec(
            architecture="resnet", depth=9, width=64, norm=norm, dropout=False, upsampling="transposed",  # type: ignore[arg-type]
            mpp=0.499, stain="nothing", license="none", training={},
        )  # fmt: skip
        save_checkpoint(path, random_resnet(context, norm=norm), spec)
    return path
