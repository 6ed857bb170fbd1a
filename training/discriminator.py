"""The PatchGAN discriminator (Isola et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi2ihc.models.networks import initialize


class PatchDiscriminator(nn.Module):
    """Convolutions 4×4 with 64, 128, 256 channels at stride 2, then 512 and 1 at stride 1.

    Batch norm follows the middle three (which therefore have no bias), leaky ReLU 0.2 all but the last. There is no
    sigmoid: the output is logits, 30×30 of them for images of 256×256 px. 2,768,705 parameters at width 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(6, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for channels, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.model = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        initialize(self)

    def forward(self, he: Tensor, ihc: Tensor) -> Tensor:
        """Map H&E and IHC, (N, 3, H, W) each, to logits (N, 1, H/8 - 2, W/8 - 2): positive where they look real."""
        logits: Tensor = self.model(torch.cat([he, ihc], 1))
        return logits
