"""bf16 against fp32 on real tissue, in grey levels."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.harness import Context, Row
from benchmarks.networks import random_resnet, tissue
from wsi2ihc.generator.translator import TorchTranslator
from wsi2ihc.geometry import ceil_to


def measure(context: Context) -> list[Row]:
    picture = tissue(context)[600:1800, 400:1600]
    rows = []
    for seed in (0,) if context.quick else (0, 1, 2):
        module = random_resnet(context, seed=seed)
        answers = {}
        for precision in ("fp32", "bf16"):
            translator = TorchTranslator(module, torch.device("cpu"), precision, is_exact=True)  # type: ignore[arg-type]
            side = ceil_to(picture.shape[0] - 127, translator.multiple_px)
            answers[precision] = translator(picture[np.newaxis, :side, :side])[0].astype(np.int16)
        difference = np.abs(answers["bf16"] - answers["fp32"])
        mean, high = float(difference.mean()), float(np.quantile(difference, 0.999))
        rows.append(
            Row(
                f"bf16 against fp32, random network {seed} calibrated on tissue",
                "mean ≤ 0.5, 99.9th percentile ≤ 3",
                f"mean {mean:.3f}, 99.9th percentile {high:.0f}, greatest {difference.max()} (answer's standard "
                f"deviation {answers['fp32'].std():.0f})",
                mean <= 0.5 and high <= 3,
            )
        )
    return rows
