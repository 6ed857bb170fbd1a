"""A sum over processes that has a gradient.

Under `torch.nn.parallel.DistributedDataParallel` (DDP) each process differentiates its own copy of the loss, with
respect to its own part of the batch only, and the parameters' gradients are then *averaged* over the P processes.
A term L of the whole batch has the same value in every process, but its derivative is the *sum* of the parts'
contributions: ``dL/dw = Σ_p dL/dx_p · dx_p/dw``. After the averaging each part counts 1/P of that. So the gradient that
a process hands to its part has to be P times ``dL/dx_p``, and nothing needs to be sent on the way back.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: FunctionCtx, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


def summed_over_processes(local: Tensor) -> Tensor:
    """Sum a tensor over all processes, with the gradient that DDP's averaging makes exact.

    The gradient is right for a loss of which each process holds the whole value (`losses.variance_loss`), as long as
    the path from ``local`` to the loss is the only one by which this process's images reach it.

    Parameters
    ----------
    local:
        the same shape in every process, which all have to call this equally often

    Returns
    -------
    Tensor
        the sum, the same in every process; its gradient to ``local`` is the number of processes times the gradient
        that arrives. ``local`` itself where there is no process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local
    total: Tensor = _Sum.apply(local)  # type: ignore[no-untyped-call]
    return total
