"""Which workers of a Dask scheduler can be given slides, and why the others cannot."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BatchError
from ..runtime import versions
from ..text import pluralize
from .child import IN_HAND
from .worker_slot import WorkerFacts, describe

if TYPE_CHECKING:
    from distributed import Client, Future

_LOOK_S = 1.0
"""Between two questions to the scheduler who is there."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Remote:
    """A worker as the client knows it.

    address:   in the cluster
    question:  under way: what it is
    facts:     its answer
    unfit:     why it cannot be given slides
    in_hand:   keys of the slides that it has
    is_alone:  whether it has one that must not share a child
    """

    address: str
    question: Future[Any] | None = None
    facts: WorkerFacts | None = None
    unfit: str = ""
    in_hand: set[str] = field(default_factory=set)
    is_alone: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return self.address if self.facts is None else self.facts.name

    @property
    def is_usable(self) -> bool:
        """Whether it can be given slides at all."""
        return self.facts is not None and not self.unfit


class Roster:
    """The workers of a scheduler, as they come and go.

    Parameters
    ----------
    client
        Connected.
    address
        Of the scheduler, to be told.
    probe
        A file in the output folder, which workers have to see.
    needs_gpu
        Whether only workers that offer a GPU are of use.
    """

    def __init__(self, client: Client, address: str, probe: Path, *, needs_gpu: bool) -> None:
        self._client, self._address, self._probe, self._needs_gpu = client, address, probe, needs_gpu
        self._remotes: dict[str, Remote] = {}
        self._looked_at = 0.0

    def look(self) -> list[Remote]:
        """Ask who is there, but no more often than once a second; new workers are asked what they are.

        Returns
        -------
        list
            Workers that have gone.

        Raises
        ------
        BatchError
            If the scheduler is gone.
        """
        for remote in self._remotes.values():
            if remote.facts is None and not remote.unfit:
                self._ask(remote)
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return []
        self._looked_at = now
        try:
            there: Mapping[str, int] = self._client.nthreads()
        except (OSError, RuntimeError, TimeoutError) as error:
            raise BatchError(
                f"the scheduler is gone ({' '.join(str(error).split()):.120}); slides that are done stay done, so run "
                "the same again when it is back"
            ) from error
        gone = [self._remotes.pop(address) for address in list(self._remotes) if address not in there]
        for address in there:
            if address not in self._remotes:
                self._remotes[address] = Remote(address)
                self._ask(self._remotes[address])
        return gone

    def forget(self, remote: Remote) -> None:
        """Ask a worker anew what it is: it is no more what it was."""
        self._remotes.pop(remote.address, None)

    def roomiest(self, *, alone: bool) -> Remote | None:
        """The worker with the least in hand that takes another slide."""
        able = [
            one for one in self.usable() if len(one.in_hand) < (1 if alone else IN_HAND) and not one.is_alone
        ]  # fmt: skip
        return min(able, key=lambda one: len(one.in_hand), default=None)

    def usable(self) -> list[Remote]:
        """Workers that can be given slides."""
        return [one for one in self._remotes.values() if one.is_usable]

    def unanswered(self) -> int:
        """How many workers have not said yet what they are."""
        return sum(one.facts is None and not one.unfit for one in self._remotes.values())

    def names(self) -> set[str]:
        """Names of all workers that have said what they are."""
        return {one.name for one in self._remotes.values() if one.facts is not None}

    def why_none(self) -> str:
        """Why no worker can be given slides, and what to do."""
        if not self._remotes:
            return f'there is no worker; start some: dask worker {self._address} --resources "GPU=1"'
        if unfit := [one for one in self._remotes.values() if one.unfit]:
            first = next((one for one in unfit if one.facts and one.facts.offers_gpu), unfit[0])
            return first.unfit if len(unfit) == 1 else f"{first.unfit} (and {len(unfit) - 1} more cannot be used)"
        return f"none of {pluralize(self.unanswered(), 'worker')} says what it is; is there other work for it?"

    def _ask(self, remote: Remote) -> None:
        """Put the question to a worker, or take its answer."""
        if remote.question is None or remote.question.status == "cancelled":
            remote.question = self._client.submit(
                describe, self._probe, key=f"wsi2ihc-look-{uuid.uuid4().hex}", workers=[remote.address],
                allow_other_workers=False, pure=False, priority=1,
            )  # fmt: skip
        elif remote.question.status == "finished":
            remote.facts = remote.question.result(timeout=10)
            remote.unfit = self._unfit(remote.facts)
        elif remote.question.status == "error":
            remote.unfit = _unable(remote, remote.question.exception(timeout=10))
        if remote.facts is not None or remote.unfit:
            remote.question = None
            # workers without a GPU are nothing to warn of: a cluster may have many, for other work
            is_told = remote.unfit and not (remote.facts and self._lacks_gpu(remote.facts))
            (_log.warning if is_told else _log.info)("%s", remote.unfit or f"worker {remote.name} can be given slides")

    def _unfit(self, facts: WorkerFacts) -> str:
        """What speaks against a worker."""
        ours = versions()["wsi2ihc"]
        if facts.version != ours:
            return f"worker {facts.name} has wsi2ihc {facts.version}, and this is {ours}; install the same everywhere"
        if not facts.sees_probe:
            return (
                f"worker {facts.name} does not see the output folder {self._probe.parent.parent}; slides, models and "
                "outputs have to be on a file system that all workers share, under the same path"
            )
        if self._lacks_gpu(facts):
            return (
                f"worker {facts.name} offers no GPU; start workers that have one with --resources \"GPU=1\", or use "
                "--device cpu"
            )  # fmt: skip
        if self._needs_gpu and not facts.sees_gpu:
            _log.warning("worker %s offers a GPU, but none can be seen there", facts.name)
        return ""

    def _lacks_gpu(self, facts: WorkerFacts) -> bool:
        return self._needs_gpu and not facts.offers_gpu


def _unable(remote: Remote, error: BaseException | None) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    if isinstance(error, ImportError):
        return f"worker {remote.name} cannot import wsi2ihc ({text}); install the same version there"
    return f"worker {remote.name} cannot be used ({text})"
