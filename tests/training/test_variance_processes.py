"""Variance loss over several processes: two with four images each against one with eight."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wsi2ihc.training.losses import VarianceKind, l1_loss, summed_over_processes, variance_loss

PROCESSES = 2
EACH = 4
KINDS: tuple[VarianceKind, ...] = get_args(VarianceKind)


def images() -> tuple[Tensor, Tensor]:
    """Eight generated and eight real images. The halves of the batch differ in their means, as two slides do."""
    random = torch.Generator().manual_seed(3)
    fake, real = torch.rand(2, PROCESSES * EACH, 3, 6, 5, generator=random, dtype=torch.float64) * 1.2 - 0.6
    fake[EACH:] += 0.3
    return fake, real


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()


def gradients(net: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def loss_of_gathered(fake: Tensor, real: Tensor, rank: int) -> Tensor:
    """The pitfall: every process sees the full batch, and the value of the term is correct."""
    gathered = []
    for local in (fake, real):
        parts = [torch.empty_like(local) for _ in range(PROCESSES)]
        dist.all_gather(parts, local.detach())
        parts[rank] = local
        gathered.append(torch.cat(parts))
    return variance_loss(gathered[0], gathered[1])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=PROCESSES)
    mine = slice(rank * EACH, (rank + 1) * EACH)
    fake, real = (both[mine] for both in images())
    results: dict[str, object] = {}
    for kind in KINDS:
        local = fake.clone().requires_grad_()
        loss = variance_loss(local, real, kind, summed_over_processes, PROCESSES)
        results[kind] = loss.detach(), torch.autograd.grad(loss, local)[0] / PROCESSES  # as DDP averages
        net = DistributedDataParallel(network())
        answer = net(fake)
        term = variance_loss(answer, real, kind, summed_over_processes, PROCESSES)
        (l1_loss(answer, real) + 10 * term).backward()
        results[f"{kind} network"] = gradients(net)
    local = fake.clone().requires_grad_()
    loss = loss_of_gathered(local, real, rank)
    results["gathered"] = loss.detach(), torch.autograd.grad(loss, local)[0] / PROCESSES
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def in_one_process(kind: VarianceKind) -> tuple[Tensor, Tensor]:
    fake, real = images()
    fake.requires_grad_()
    loss = variance_loss(fake, real, kind)
    return loss.detach(), torch.autograd.grad(loss, fake)[0]


def assert_near(value: Tensor, expected: Tensor) -> None:
    assert float((value - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
    assert float(expected.abs().max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_image_gradient_match_one_process(results, kind: VarianceKind) -> None:
    loss, gradient = in_one_process(kind)
    for one in results:
        assert_near(one[kind][0], loss)
    assert_near(torch.cat([one[kind][1] for one in results]), gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_gradient_matches_one_process(results, kind: VarianceKind) -> None:
    fake, real = images()
    net = network()
    answer = net(fake)
    (l1_loss(answer, real) + 10 * variance_loss(answer, real, kind)).backward()
    for one in results:
        assert len(one[f"{kind} network"]) == 4
        for value, expected in zip(one[f"{kind} network"], gradients(net), strict=True):
            assert_near(value, expected)


def test_gathering_images_without_gradient_halves_the_term(results) -> None:
    # the value is right, so nothing but the gradient shows it
    loss, gradient = in_one_process("unbiased")
    assert_near(results[0]["gathered"][0], loss)
    wrong = torch.cat([one["gathered"][1] for one in results])
    assert_near(wrong * PROCESSES, gradient)


def test_sum_without_a_process_group() -> None:
    local = torch.ones(3)
    assert summed_over_processes(local) is local
