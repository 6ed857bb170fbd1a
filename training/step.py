"""One training step: the discriminator learns, then the generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel

from wsi2ihc.generator.checkpoint import build_network
from wsi2ihc.generator.pixels import to_network

from .discriminator import PatchDiscriminator
from .distributed import summed_over_processes
from .losses import adversarial_loss, discriminator_loss, pyramid_l1_losses, variance_loss
from .options import TrainOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOSSES = ("generator", "adversarial", "l1", "variance", "discriminator")
"""What a step reports: the generator's total; its terms before they are weighted (L1 at full resolution); and the
discriminator's loss."""


@dataclass(frozen=True, slots=True)
class Networks:
    """Generator and discriminator, set up for the device (``…_module``: as they are inside), and their optimisers.

    averaged: a moving average of the generator's weights, if there is one
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_module: nn.Module
    discriminator_module: nn.Module
    generator_optimiser: Optimizer
    discriminator_optimiser: Optimizer
    averaged: AveragedModel | None = None

    @property
    def model(self) -> nn.Module:
        """What is validated and kept: the generator, or the average of its weights."""
        return self.averaged.module if self.averaged is not None else self.generator_module

    def set_learning_rate(self, rate: float) -> None:
        for optimiser in (self.generator_optimiser, self.discriminator_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = rate


def build_networks(options: TrainOptions, fabric: Fabric) -> Networks:
    """Both networks with fresh weights (the seed decides), in channels-last memory, on the device."""
    torch.manual_seed(options.seed)
    generator: nn.Module = build_network(options.spec())
    discriminator: nn.Module = PatchDiscriminator(options.ndf)
    made = []
    for module in (generator, discriminator):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks it
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # it refuses tensors of the CPU
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        if options.compile:
            module.compile()
        optimiser = Adam(module.parameters(), options.learning_rate, (options.beta1, options.beta2))
        made.append((module, *fabric.setup(module, optimiser)))
    (generator, g_ready, g_optimiser), (discriminator, d_ready, d_optimiser) = made
    averaged = None
    if options.ema_decay:
        averaged = AveragedModel(generator, avg_fn=moving_average(options.ema_decay), use_buffers=True)
        averaged.requires_grad_(False)
    return Networks(g_ready, d_ready, generator, discriminator, g_optimiser, d_optimiser, averaged)


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The rule by which `AveragedModel` takes a step's weights into the average, whatever their number so far.

    After n steps the average keeps ``min(decay, (1 + n) / (10 + n))`` of itself, so that the first weights, which are
    random, do not stay in it for thousands of steps (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def averaged(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not current.is_floating_point():  # batch norm's counters
            return current
        n = int(steps)
        return torch.lerp(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return averaged


def training_step(fabric: Fabric, networks: Networks, he: Tensor, ihc: Tensor, options: TrainOptions) -> Tensor:
    """Train both networks on one batch.

    The order is that of the published code: the generator's answer is made once; the discriminator takes a step on it
    and on the reference; then the generator takes one against the discriminator so trained.

    Parameters
    ----------
    he, ihc:
        this process's part of the batch, (N, H, W, 3) uint8, on the device

    Returns
    -------
    Tensor
        the losses named by `LOSSES`, (5) float32, detached, on the device
    """
    source, reference = to_network(he), to_network(ihc)
    virtual = networks.generator(source)

    networks.discriminator_module.requires_grad_(True)
    on_virtual = networks.discriminator(source, virtual.detach())
    on_reference = networks.discriminator(source, reference)
    loss = discriminator_loss(on_virtual, on_reference)
    networks.discriminator_optimiser.zero_grad()
    fabric.backward(loss)
    networks.discriminator_optimiser.step()

    # Frozen, and without its DDP wrapper, which would wait for gradients that never come.
    networks.discriminator_module.requires_grad_(False)
    with fabric.autocast():
        on_virtual = networks.discriminator_module(source, virtual)
    adversarial = adversarial_loss(on_virtual, real=True)
    octaves = pyramid_l1_losses(virtual, reference, options.octaves)
    variance = _variance(virtual, reference, options, fabric.world_size)
    total = adversarial + options.l1_weight * torch.stack(octaves).sum()
    if options.variance_weight:
        total = total + options.variance_weight * variance
    networks.generator_optimiser.zero_grad()
    fabric.backward(total)
    networks.generator_optimiser.step()
    if networks.averaged is not None:
        networks.averaged.update_parameters(networks.generator_module)
    return torch.stack([one.detach().float() for one in (total, adversarial, octaves[0], variance, loss)])


def _variance(virtual: Tensor, reference: Tensor, options: TrainOptions, processes: int) -> Tensor:
    """The variance term; without a gradient, or NaN, where it is only reported and there is none."""
    if not options.variance_weight:
        virtual = virtual.detach()
        if len(virtual) * processes < 2:
            return virtual.new_full((), torch.nan)
    return variance_loss(virtual, reference, options.variance_kind, summed_over_processes, processes)
