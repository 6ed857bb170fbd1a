"""What a run would take: parameters, and an estimate of the memory of one process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsi2ihc.generator.checkpoint import build_network
from wsi2ihc.generator.device import choose_precision, free_memory_bytes, parse_devices
from wsi2ihc.runtime import available_memory_bytes

from .discriminator import PatchDiscriminator
from .job import TrainingJob
from .machine import count_processes

_COPIES = 4
"""Of every weight in float32: itself, its gradient, and Adam's two averages."""


@dataclass(frozen=True, slots=True)
class TrainingForecast:
    """What one process of a run would take.

    generator_parameters, discriminator_parameters:  how many there are
    processes:          that share a batch
    device, precision:  that "auto" stands for here
    weights_bytes:      weights, gradients and Adam's averages
    activations_bytes:  what the layers keep for the gradients of one step, at its most
    memory_bytes:       both together; libraries and what layers use on their own come on top
    available_bytes:    what the GPU has free, or the machine can give each process; None if unknown
    """

    generator_parameters: int
    discriminator_parameters: int
    processes: int
    device: str
    precision: str
    weights_bytes: int
    activations_bytes: int
    memory_bytes: int
    available_bytes: int | None


def forecast(job: TrainingJob) -> TrainingForecast:
    """Estimate without running anything: the networks are looked at on torch's "meta" device, which has no memory.

    Raises
    ------
    DeviceError
        If there is no such device, or it cannot work in this precision.
    OptionError
        If a batch cannot be shared out among the processes.
    """
    options = job.options
    processes = count_processes(options)
    device = parse_devices(options.device)[0]
    precision = choose_precision(options.precision, device)
    side, images = options.crop_size, options.batch_size // processes.total
    with torch.device("meta"):
        generator, discriminator = build_network(job.spec), PatchDiscriminator(options.ndf)
        image = torch.empty(images, 3, side, side)
    generator_kept = saved_values(generator, image)
    discriminator_kept = saved_values(discriminator, image, image)
    # The generator's stay while the discriminator takes its step on two batches.
    values = generator_kept + 2 * discriminator_kept
    of_generator, of_discriminator = (
        sum(one.numel() for one in module.parameters()) for module in (generator, discriminator)
    )
    weights_bytes = 4 * _COPIES * (of_generator + of_discriminator)
    activations_bytes = values * (4 if precision == "fp32" else 2)
    return TrainingForecast(
        generator_parameters=of_generator,
        discriminator_parameters=of_discriminator,
        processes=processes.total,
        device=str(device),
        precision=precision,
        weights_bytes=weights_bytes,
        activations_bytes=activations_bytes,
        memory_bytes=weights_bytes + activations_bytes,
        available_bytes=_available_bytes(device, processes.local),
    )


def _available_bytes(device: torch.device, processes: int) -> int | None:
    """For each process."""
    if device.type == "cuda":
        return free_memory_bytes(device)
    available = available_memory_bytes()
    return None if available is None else available // processes


def saved_values(module: nn.Module, *inputs: Tensor) -> int:
    """How many numbers a module keeps for its gradients in one forward pass, each tensor counted once."""
    weights = {id(one) for one in module.parameters()}
    # holding the tensors keeps their ids from being used again
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = module.train()(*inputs)
    del answer
    return sum(tensor.numel() for tensor in kept.values())
