"""Networks: the generators ResNet (Johnson et al. 2016) and U-Net, and the discriminator PatchGAN."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model_spec import Norm, Padding, Upsampling

INIT_STD = 0.02
"""Standard deviation of the initial convolution weights and batch norm scales (Isola et al. 2017, section 6.2)."""


class ResnetBlock(nn.Module):
    """``x + block(x)`` with two 3×3 convolutions and no activation after the sum."""

    def __init__(self, channels: int, norm: Norm, dropout: bool, padding: Padding = "reflect") -> None:
        super().__init__()
        layers = [*_padded(channels, norm, padding), _norm(norm, channels), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(0.5))
        layers += [*_padded(channels, norm, padding), _norm(norm, channels)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv_block(x)
        return x + branch


class BlurDownsample(nn.Module):
    """Binomial filter, followed by subsampling by 2 (Zhang 2019, "antialiased" networks)."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", _binomial((1, 2, 1), channels))

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


class BlurUpsample(nn.Module):
    """Upsampling by 2 with zeros, followed by a binomial filter."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", 4 * _binomial((1, 3, 3, 1), channels))

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        doubled = functional.conv_transpose2d(padded, self.filt, stride=2, padding=2, groups=x.shape[1])
        return doubled[:, :, 1:-1, 1:-1]


class ResnetGenerator(nn.Module):
    """ResNet: stem, two downsampling steps, residual blocks at a quarter of the resolution, two upsampling steps, head.

    Maps (N, 3, H, W) in [-1, 1], with H and W multiples of 4, to the same shape in [-1, 1].

    The parameters are those of `GeneratorSpec`. Published models have 9 ``blocks`` for at least 256 px and 6 below,
    a ``width`` of 64, and "transposed" ``upsampling`` (3×3 convolutions of stride 2). "bilinear" (×2, then a 3×3
    convolution) reduces checkerboard artifacts (Odena et al. 2016) but requires training. Nearest ×2 leaves more of
    them: variation within 32 px is aliased to the period of 2 px. With ``norm`` "batch", convolutions have no bias;
    "instance" has no affine parameters. ``antialiasing`` is possible only with "transposed".
    """

    def __init__(
        self,
        blocks: int = 9,
        width: int = 64,
        norm: Norm = "batch",
        dropout: bool = True,
        upsampling: Upsampling = "transposed",
        padding: Padding = "reflect",
        antialiasing: bool = False,
    ) -> None:
        super().__init__()
        self.antialiasing = antialiasing
        has_bias = norm == "instance"
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, width, 7, bias=has_bias),
            _norm(norm, width),
            nn.ReLU(inplace=True),
        ]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=1 if antialiasing else 2, padding=1, bias=has_bias),
                _norm(norm, 2 * channels),
                nn.ReLU(inplace=True),
                *([BlurDownsample(2 * channels)] if antialiasing else []),
            ]
        layers += [ResnetBlock(4 * width, norm, dropout, padding) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            if antialiasing:
                layers += [BlurUpsample(channels), nn.Conv2d(channels, channels // 2, 3, padding=1, bias=has_bias)]
            else:
                layers.append(_upsampling(channels, channels // 2, upsampling, has_bias))
            layers += [_norm(norm, channels // 2), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


class UnetBlock(nn.Module):
    """Level of the U-Net: downsampling, the level ``below`` (if any), upsampling, and a skip connection.

    Maps (N, outer, H, W) to (N, 2 * outer, H, W), with ``inner`` channels at half the resolution. The "outermost" level
    maps (N, 3, H, W) to the same, ends in tanh and has no skip.
    """

    def __init__(
        self,
        outer: int,
        inner: int,
        below: UnetBlock | None,
        norm: Norm,
        dropout: bool = False,
        position: Literal["outermost", "inner"] = "inner",
    ) -> None:
        super().__init__()
        self.has_skip = position != "outermost"
        has_bias = norm == "instance"
        down: list[nn.Module] = [nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=has_bias)]
        up: list[nn.Module] = [nn.ReLU(inplace=True)]
        up_in = inner if below is None else 2 * inner
        if self.has_skip:
            # Not in place, so that the skip carries the input. (In the published code it is in place and the skip
            # carries the activated input; the ReLU after every skip makes the two equal.)
            down.insert(0, nn.LeakyReLU(0.2))
            if below is not None:
                down.append(_norm(norm, inner))
            up += [nn.ConvTranspose2d(up_in, outer, 4, stride=2, padding=1, bias=has_bias), _norm(norm, outer)]
            if dropout:
                up.append(nn.Dropout(0.5))
        else:
            up += [nn.ConvTranspose2d(up_in, outer, 4, stride=2, padding=1), nn.Tanh()]
        self.model = nn.Sequential(*down, *([] if below is None else [below]), *up)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return torch.cat([x, output], 1) if self.has_skip else output


class UnetGenerator(nn.Module):
    """U-Net of pix2pix with ``downs`` levels: 8 for 256 px ("U-Net-256"), 7 for 128 px.

    Maps (N, 3, H, W) in [-1, 1], with H and W multiples of ``2 ** downs``, to the same shape in [-1, 1].
    """

    def __init__(self, downs: int = 8, width: int = 64, norm: Norm = "batch", dropout: bool = True) -> None:
        super().__init__()
        block = UnetBlock(8 * width, 8 * width, None, norm)
        for _ in range(downs - 5):
            block = UnetBlock(8 * width, 8 * width, block, norm, dropout)
        for channels in (4 * width, 2 * width, width):
            block = UnetBlock(channels, 2 * channels, block, norm)
        self.model = UnetBlock(3, width, block, norm, position="outermost")
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


def initialize(module: nn.Module) -> None:
    """Draw the initial weights: convolutions N(0, 0.02), batch norm scales N(1, 0.02), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, INIT_STD)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, INIT_STD)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _padded(channels: int, norm: Norm, padding: Padding) -> list[nn.Module]:
    """Make a padded 3×3 convolution; reflection is a separate layer, which affects the names of weights."""
    has_bias = norm == "instance"
    if padding == "zero":
        return [nn.Conv2d(channels, channels, 3, padding=1, bias=has_bias)]
    return [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=has_bias)]


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.InstanceNorm2d(channels)


def _binomial(weights: tuple[int, ...], channels: int) -> Tensor:
    """Make a normalized filter for each channel, (C, 1, h, w)."""
    row = torch.tensor(weights, dtype=torch.float32)
    square = row[:, None] * row[None, :]
    return (square / square.sum()).repeat(channels, 1, 1, 1)


def _upsampling(channels_in: int, channels_out: int, kind: Upsampling, bias: bool) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1, bias=bias)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.ReflectionPad2d(1),
        nn.Conv2d(channels_in, channels_out, 3, bias=bias),
    )


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): convolutions 4×4 with 64, 128, 256 channels at stride 2, then 512, 1 at stride 1.

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
