"""Where the scheduler of a Dask cluster is, and the connection to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BatchError
from ..files import read_json

if TYPE_CHECKING:
    from distributed import Client


LARGEST_FILE_BYTES = 1 << 20
"""Size of a scheduler file: Dask writes some hundred bytes."""


def address_of(scheduler: str) -> str:
    """The address of a scheduler, or the one that its scheduler file names.

    Raises
    ------
    BatchError
        If it is neither.
    """
    if not scheduler:
        raise BatchError("--scheduler: name the address of a scheduler, or its file")
    path = Path(scheduler)
    if not (scheduler.endswith(".json") or path.exists()):
        return scheduler
    try:
        return str(read_json(path, LARGEST_FILE_BYTES)["address"])
    except FileNotFoundError as error:
        raise BatchError(
            f"there is no scheduler file {scheduler}; start one: dask scheduler --scheduler-file {scheduler}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BatchError(f"{scheduler} is no scheduler file ({error!s:.80}); `dask scheduler` writes one") from error


def prepare_dask() -> None:
    """Import Dask. A scheduler in this process would tell of each connection, unless the user's settings forbid it."""
    try:
        import dask

        dask.config.update_defaults({"logging": {"distributed": "warning"}})
        import distributed  # noqa: F401
    except ImportError as error:
        raise BatchError("a cluster needs Dask: pip install 'wsi2ihc[cluster]'") from error


def connected(address: str, timeout_s: float) -> Client:
    """A client of the scheduler at an address.

    Raises
    ------
    BatchError
        If there is none.
    """
    import dask
    from distributed import Client

    if address.startswith("tls:") and not dask.config.get("distributed.comm.tls.client.cert", None):
        raise BatchError(
            f"the scheduler at {address} wants certificates; set DASK_DISTRIBUTED__COMM__TLS__… as for its workers "
            "(docs/cluster.md, Security)"
        )
    try:
        return Client(address, timeout=timeout_s, name="wsi2ihc-batch", set_as_default=False)
    except (OSError, ValueError, TimeoutError, RuntimeError, ImportError) as error:
        raise BatchError(
            f"there is no Dask scheduler at {address} ({' '.join(str(error).split()):.120}); start one with "
            "`dask scheduler`, and name its address or its --scheduler-file"
        ) from error
