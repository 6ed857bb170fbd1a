"""The discriminator, and one training step: discriminator, then generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel

from wsi2ihc.models.fused_resnet import to_network
from wsi2ihc.models.model_file import build_network
from wsi2ihc.models.networks import PatchDiscriminator

from .losses import adversarial_loss, discriminator_loss, pyramid_l1_losses, summed_over_processes, variance_loss
from .options import TrainOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOSSES = ("generator", "adversarial", "l1", "variance", "discriminator")
"""Losses of a step: total of the generator; its terms before weighting (L1 at full resolution); loss of the
discriminator.
"""


@dataclass(frozen=True, slots=True)
class Networks:
    """Generator and discriminator with their optimizers."""

    # as set up by Fabric for the device
    generator: nn.Module
    discriminator: nn.Module
    # the plain modules inside
    generator_module: nn.Module
    discriminator_module: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    averaged: AveragedModel | None = None  # moving average of the generator's weights, if enabled

    @property
    def model(self) -> nn.Module:
        """The module that is validated and saved: the generator, or the average of its weights."""
        return self.averaged.module if self.averaged is not None else self.generator_module

    def set_learning_rate(self, rate: float) -> None:
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate


def build_networks(options: TrainOptions, fabric: Fabric) -> Networks:
    """Build both networks with initial weights (from the seed), in channels-last memory, on the device."""
    torch.manual_seed(options.seed)
    generator: nn.Module = build_network(options.spec())
    discriminator: nn.Module = PatchDiscriminator(options.ndf)
    built = []
    for module in (generator, discriminator):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks it
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # SyncBatchNorm does not support CPU tensors
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        if options.compile:
            module.compile()
        optimizer = Adam(module.parameters(), options.learning_rate, (options.beta1, options.beta2))
        built.append((module, *fabric.setup(module, optimizer)))
    (generator, g_ready, g_optimizer), (discriminator, d_ready, d_optimizer) = built
    averaged = None
    if options.ema_decay:
        averaged = AveragedModel(generator, avg_fn=moving_average(options.ema_decay), use_buffers=True)
        averaged.requires_grad_(False)
    return Networks(g_ready, d_ready, generator, discriminator, g_optimizer, d_optimizer, averaged)


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return the rule by which `AveragedModel` includes the weights of a step into the average.

    After n steps the average keeps ``min(decay, (1 + n) / (10 + n))`` of itself, so that the initial random weights do
    not stay in it for thousands of steps (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def averaged(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not current.is_floating_point():  # batch norm's counters
            return current
        n = int(steps)
        return torch.lerp(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return averaged


def training_step(fabric: Fabric, networks: Networks, he: Tensor, ihc: Tensor, options: TrainOptions) -> Tensor:
    """Train both networks on one batch.

    The order is that of the published code: the generator runs once; the discriminator takes a step on its output and
    on the reference; then the generator takes a step against the updated discriminator.

    Parameters
    ----------
    he, ihc
        This process's part of the batch, (N, H, W, 3) uint8, on the device.

    Returns
    -------
    Tensor
        The losses named by `LOSSES`, (5,) float32, detached, on the device.
    """
    source, reference = to_network(he), to_network(ihc)
    virtual = networks.generator(source)

    networks.discriminator_module.requires_grad_(True)
    on_virtual = networks.discriminator(source, virtual.detach())
    on_reference = networks.discriminator(source, reference)
    loss = discriminator_loss(on_virtual, on_reference)
    networks.discriminator_optimizer.zero_grad()
    fabric.backward(loss)
    networks.discriminator_optimizer.step()

    # frozen, and without its DDP wrapper, which would wait for gradients that are never computed
    networks.discriminator_module.requires_grad_(False)
    with fabric.autocast():
        on_virtual = networks.discriminator_module(source, virtual)
    adversarial = adversarial_loss(on_virtual, real=True)
    octaves = pyramid_l1_losses(virtual, reference, options.octaves)
    variance = _variance(virtual, reference, options, fabric.world_size)
    total = adversarial + options.l1_weight * torch.stack(octaves).sum()
    if options.variance_weight:
        total = total + options.variance_weight * variance
    networks.generator_optimizer.zero_grad()
    fabric.backward(total)
    networks.generator_optimizer.step()
    if networks.averaged is not None:
        networks.averaged.update_parameters(networks.generator_module)
    return torch.stack([one.detach().float() for one in (total, adversarial, octaves[0], variance, loss)])


def _variance(virtual: Tensor, reference: Tensor, options: TrainOptions, processes: int) -> Tensor:
    """Return the variance term; without a gradient, or NaN if undefined, where it is only reported."""
    if not options.variance_weight:
        virtual = virtual.detach()
        if len(virtual) * processes < 2:
            return virtual.new_full((), torch.nan)
    return variance_loss(virtual, reference, options.variance_kind, summed_over_processes, processes)


def rate_factor(epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch (from 0), relative to the initial one.

    It is constant for the first half, then decreases linearly. The published schedule is zero in its last epoch, which
    then trains nothing; this one would reach zero in the epoch after the last.
    """
    constant = epochs - epochs // 2
    return 1.0 - max(0, epoch + 1 - constant) / (epochs // 2 + 1)


def step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of all random numbers of a step (dropout) in one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)


def is_validated(epoch: int, epochs: int, every: int) -> bool:
    """Return whether an epoch (from 0) is followed by a validation; the last one always is."""
    return (epoch + 1) % every == 0 or epoch + 1 == epochs
