"""Training step compared with a plain implementation, and the fraction of a step outside the networks."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import Context, Row, interleaved, ratio_of_medians
from wsi2ihc.models.fused_resnet import to_network
from wsi2ihc.models.model_file import build_network
from wsi2ihc.models.networks import PatchDiscriminator
from wsi2ihc.training import train_step as own
from wsi2ihc.training.data.loader import training_batches
from wsi2ihc.training.fabric import count_workers, start_fabric
from wsi2ihc.training.options import TrainOptions, resolve_options
from wsi2ihc.training.trainer import LossLog
from wsi2ihc.training.training_setup import TrainingJob, prepare

KERNEL = torch.tensor([0.274069, 0.451863, 0.274069])

Step = Callable[[Tensor, Tensor], Tensor]


class PlainStep:
    """Plain training step: eager, contiguous, float32 unless ``autocast``, with blurs as convolutions."""

    def __init__(self, options: TrainOptions, autocast: bool = False) -> None:
        torch.manual_seed(options.seed)
        self.options, self.autocast = options, autocast
        self.generator, self.discriminator = build_network(options.spec()), PatchDiscriminator(options.ndf)
        self.optimizers = [
            torch.optim.Adam(module.parameters(), options.learning_rate, (options.beta1, options.beta2))
            for module in (self.generator, self.discriminator)
        ]

    def __call__(self, he: Tensor, ihc: Tensor) -> Tensor:
        cross_entropy = functional.binary_cross_entropy_with_logits
        he, ihc = (to_network(one).contiguous() for one in (he, ihc))
        of_generator, of_discriminator = self.optimizers
        with self._precision():
            fake = self.generator(he)
        fake = fake.float()
        self.discriminator.requires_grad_(True)
        with self._precision():
            on_fake, on_real = self.discriminator(he, fake.detach()), self.discriminator(he, ihc)
        on_fake, on_real = on_fake.float(), on_real.float()
        loss = (
            cross_entropy(on_fake, torch.zeros_like(on_fake)) + cross_entropy(on_real, torch.ones_like(on_real))
        ) / 2
        of_discriminator.zero_grad()
        loss.backward()
        of_discriminator.step()
        self.discriminator.requires_grad_(False)
        with self._precision():
            on_fake = self.discriminator(he, fake)
        on_fake = on_fake.float()
        adversarial = cross_entropy(on_fake, torch.ones_like(on_fake))
        octaves = pyramid(fake, ihc)
        variance = (ihc.var(0) - fake.var(0)).abs().mean()
        total = adversarial + self.options.l1_weight * sum(octaves) + self.options.variance_weight * variance
        of_generator.zero_grad()
        total.backward()
        of_generator.step()
        return torch.stack(
            [total.detach(), adversarial.detach(), octaves[0].detach(), variance.detach(), loss.detach()]
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)


def pyramid(fake: Tensor, real: Tensor) -> list[Tensor]:
    """Return the L1 loss at four scales, with four 3x3 blurs of both images between scales."""
    kernel = (KERNEL[:, None] * KERNEL).expand(3, 1, 3, 3)
    losses = [(fake - real).abs().mean()]
    for _ in range(3):
        for _ in range(4):
            fake, real = (
                functional.conv2d(functional.pad(one, (1, 1, 1, 1), "reflect"), kernel, groups=3)
                for one in (fake, real)
            )
        fake, real = fake[..., ::2, ::2], real[..., ::2, ::2]
        losses.append((fake - real).abs().mean())
    return losses


def own_step(options: TrainOptions) -> Step:
    fabric = start_fabric(options)
    networks = own.build_networks(options, fabric)
    return lambda he, ihc: own.training_step(fabric, networks, he, ihc, options)


def measure(context: Context) -> list[Row]:
    small = context.quick
    common: dict[str, Any] = {"dropout": False, "device": "cpu", "mpp": 0.5, "stain": "pan-CK"}
    size = {"ngf": 16, "ndf": 32, "crop_size": 128} if small else {}
    options = {name: resolve_options({**common, **size, "precision": name}) for name in ("fp32", "auto")}
    steps: dict[str, Step] = {
        "plain fp32": PlainStep(options["fp32"]),
        "own fp32": own_step(options["fp32"]),
        "own default": own_step(options["auto"]),
    }
    data = {"group_by": str(context.data / "hemit256" / "regions.csv")}
    job = prepare(context.data / "hemit256", resolve_options({**common, **size, **data}))
    batches = list(itertools.islice(_batches(job, workers=0), 20))
    losses: dict[str, list[float]] = {name: [] for name in steps}

    def timed(name: str) -> float:
        batch = batches[len(losses[name]) % len(batches)]
        started = time.perf_counter()
        losses[name].append(float(steps[name](batch.he, batch.ihc)[0]))
        return time.perf_counter() - started

    seconds = interleaved({name: lambda name=name: timed(name) for name in steps}, 20)
    seconds = {name: values[2:] for name, values in seconds.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"a step of ResNet-9, width {options['fp32'].ngf}, batch 8 at {options['fp32'].crop_size}²"
    rows = [
        Row(f"{what}, fp32, plain over own", "reported", f"{ratio_of_medians(seconds, 'plain fp32', 'own fp32'):.2f}×",
            None, medians),
        Row(f"{what}, plain fp32 over own default precision", "≥ 1.5×",
            f"{(speed := ratio_of_medians(seconds, 'plain fp32', 'own default')):.2f}× "
            f"({medians['plain fp32']:.2f} s, {medians['own default']:.2f} s)", speed >= 1.5, medians),
    ]  # fmt: skip
    for name in ("own fp32", "own default"):
        apart = np.abs(np.array(losses[name]) / np.array(losses["plain fp32"]) - 1)
        rows.append(Row(f"generator's loss over 20 steps, {name} against plain fp32", "the same curve",
                        f"mean {apart.mean():.2%}, largest {apart.max():.2%} apart, from {losses[name][0]:.1f} to "
                        f"{losses[name][-1]:.1f}", None, {"curve": losses[name]}))  # fmt: skip
    return [*rows, *_overhead(job)]


def _batches(job: TrainingJob, workers: int) -> Iterator[Any]:
    options = job.options
    return training_batches(
        job.train, crop_px=options.crop_size, augmentation=options.augmentation, batch_size=options.batch_size,
        seed=0, last_step=10_000, workers=workers,
    )  # fmt: skip


def _overhead(job: TrainingJob) -> list[Row]:
    """Compare the complete loop (decoding workers, losses, log) with the networks alone on a batch in memory."""
    options = job.options
    fabric = start_fabric(options)
    networks = own.build_networks(options, fabric)
    log = LossLog(options, job.steps_per_epoch, job.steps, None, lambda _: None, lambda values: values)
    batches = _batches(job, count_workers(options))
    held = next(batches)
    count = itertools.count(1)

    def loop() -> float:
        started = time.perf_counter()
        batch = next(batches)
        log.add(own.training_step(fabric, networks, batch.he, batch.ihc, options), next(count), 2e-4)
        return time.perf_counter() - started

    def networks_alone() -> float:
        nothing = mock.patch.multiple(
            own,
            adversarial_loss=lambda logits, **_: logits.float().mean(),
            discriminator_loss=lambda on_fake, on_real: (on_fake + on_real).float().mean(),
            pyramid_l1_losses=lambda fake, *_: [fake.mean()],
            variance_loss=lambda fake, *_: fake.detach().new_zeros(()),
        )
        started = time.perf_counter()
        with nothing:
            own.training_step(fabric, networks, held.he, held.ihc, options)
        return time.perf_counter() - started

    seconds = interleaved({"loop": loop, "networks": networks_alone}, 20)
    share = 1 - 1 / ratio_of_medians({name: values[3:] for name, values in seconds.items()}, "loop", "networks")
    label = f"fraction of a step that is not network arithmetic, width {options.ngf}, {options.crop_size}²"
    return [Row(label, "≤ 5 %", f"{share:.1%}", share <= 0.05)]
