"""Batches of patches for training and validation: decoded and cropped in workers, the same whatever their number.

What step k sees is a pure function of the seed, k, the global batch size and the pairs. So a run resumes at any step
without state, and neither the number of workers nor that of processes changes what is learnt.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.context
import multiprocessing.process
import multiprocessing.util
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError, TrainingError
from wsi2ihc.processes import starting_processes, uninterrupted
from wsi2ihc.text import pluralize

from .images import read_pair
from .pairs import Augmentation, Pair
from .stain_jitter import DRAWS, recoloured

_SYMMETRIES = {"none": 1, "hflip": 2, "dihedral": 8}
"""How many of the first turns of `turned` an augmentation draws from."""

_ORDER, _PLACE = 0, 1
"""What random numbers are for: the order of an epoch, the crop of a sample."""

_Key: TypeAlias = tuple[int, int]
_Sample: TypeAlias = tuple[RGBImage, RGBImage]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Patches of one size: ``he`` and ``ihc``, (N, H, W, 3) uint8, and the names of the pairs."""

    he: Tensor
    ihc: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Arrays:
    """A batch on its way from a worker.

    Tensors would be left in shared memory, of which containers have little, and be fetched from a thread of the worker
    that prints a traceback when the training process is interrupted.
    """

    he: RGBImage
    ihc: RGBImage
    names: tuple[str, ...]

    def pin_memory(self) -> PairBatch:
        """Called by the loader's thread where batches are to be pinned."""
        return PairBatch(torch.from_numpy(self.he).pin_memory(), torch.from_numpy(self.ihc).pin_memory(), self.names)

    def batch(self) -> PairBatch:
        return PairBatch(torch.from_numpy(self.he), torch.from_numpy(self.ihc), self.names)


_Loaded: TypeAlias = _Arrays | PairBatch | str
"""A batch, or what is wrong with it."""


def steps_per_epoch(pairs: Sequence[Pair], global_batch: int) -> int:
    """Whole batches in the pairs; a ragged last one is dropped, since its variance would be another's.

    Raises
    ------
    DatasetError
        If a batch is larger than the data.
    """
    if global_batch > len(pairs):
        raise DatasetError(
            f"a batch of {global_batch} is larger than the {pluralize(len(pairs), 'training pair')}; lower --batch-size"
        )
    return len(pairs) // global_batch


def training_batches(
    pairs: Sequence[Pair],
    *,
    crop_px: int,
    augmentation: Augmentation,
    stain_jitter: float = 0.0,
    batch_size: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    first_step: int = 0,
    last_step: int,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[PairBatch]:
    """Batches of the steps from ``first_step`` up to, but without, ``last_step``: random crops, randomly turned.

    Every epoch goes through the pairs in a new order. Memory: a worker takes about 50 MB, one decoded pair, and two
    batches that it is ahead; nothing is kept of what was read, so the size of the data set does not matter.

    Parameters
    ----------
    pairs:
        of the training set
    crop_px:
        side of the crops
    augmentation:
        applied to both images of a pair alike
    stain_jitter:
        strength of `recoloured`, applied to the H&E alone; 0: none
    batch_size:
        of this process; the global batch has ``processes`` times as many
    seed:
        of order, places and turns
    process, processes:
        which slice of each global batch is given
    workers:
        processes that decode; 0: this one does. They live as long as the iterator.
    pin:
        put batches into page-locked memory, which GPUs copy from faster. It opens a CUDA context, so it is left to
        those who compute on one.

    Raises
    ------
    DatasetError
        If a pair cannot be decoded, is smaller than the crop, or a global batch is larger than the data.
    """
    per_epoch = steps_per_epoch(pairs, batch_size * processes)
    keys = _Keys(len(pairs), per_epoch, batch_size, seed, process, processes, first_step, last_step)
    crops = _Crops(tuple(pairs), crop_px, augmentation, stain_jitter, seed)
    yield from _load(crops, keys, workers, pin)


def whole_patches(
    pairs: Sequence[Pair], *, batch_size: int, multiple: int, workers: int = 0, pin: bool = False
) -> Iterator[tuple[tuple[Pair, ...], PairBatch]]:
    """Whole patches in order, cut at the right and at the bottom to a multiple of ``multiple``.

    A batch holds neighbours of one size; so it is smaller than ``batch_size`` where sizes change, and at the end.
    ``pin`` and ``workers`` are those of `training_batches`.

    Raises
    ------
    DatasetError
        If a pair cannot be decoded.
    """
    waiting: list[PairBatch] = []
    members: list[Pair] = []
    singles = _load(_Whole(tuple(pairs), multiple), [[index] for index in range(len(pairs))], workers, pin)
    for pair, single in zip(pairs, singles, strict=True):
        if waiting and (len(waiting) == batch_size or waiting[0].he.shape != single.he.shape):
            yield tuple(members), _join(waiting)
            waiting, members = [], []
        waiting.append(single)
        members.append(pair)
    if waiting:
        yield tuple(members), _join(waiting)


def _join(batches: Sequence[PairBatch]) -> PairBatch:
    names = tuple(name for batch in batches for name in batch.names)
    return PairBatch(torch.cat([batch.he for batch in batches]), torch.cat([batch.ihc for batch in batches]), names)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Which samples every step takes: lists of (epoch, index of the pair)."""

    pairs: int
    per_epoch: int
    batch_size: int
    seed: int
    process: int
    processes: int
    first_step: int
    last_step: int

    def __iter__(self) -> Iterator[list[_Key]]:
        order = functools.lru_cache(1)(self._order)
        for step in range(self.first_step, self.last_step):
            epoch, within = divmod(step, self.per_epoch)
            start = (within * self.processes + self.process) * self.batch_size
            yield [(epoch, int(index)) for index in order(epoch)[start : start + self.batch_size]]

    def _order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.pairs)


@dataclass(frozen=True, slots=True)
class _Crops:
    """Random crops; what is drawn depends on the seed, the epoch and the pair alone."""

    pairs: tuple[Pair, ...]
    crop_px: int
    augmentation: Augmentation
    stain_jitter: float
    seed: int

    def batch(self, keys: list[_Key]) -> PairBatch:
        return _stack([self._crop(*key) for key in keys], [self.pairs[index].name for _, index in keys])

    def _crop(self, epoch: int, index: int) -> _Sample:
        pair = self.pairs[index]
        he, ihc = read_pair(pair)
        height, width = he.shape[:2]
        if min(height, width) < self.crop_px:
            raise DatasetError(f"{pair.he}: a patch of {width}×{height} px is smaller than the crop of {self.crop_px}")
        # All is drawn whatever is used of it, so that crops lie in the same places with and without turns and jitter.
        x, y, turn, *stain = np.random.default_rng((self.seed, _PLACE, epoch, index)).random(3 + DRAWS)
        left, top = int(x * (width - self.crop_px + 1)), int(y * (height - self.crop_px + 1))
        place = np.s_[top : top + self.crop_px, left : left + self.crop_px]
        symmetry = int(turn * _SYMMETRIES[self.augmentation])
        # Copies: a view would keep the whole patch until the batch is complete.
        stained = recoloured(he[place].copy(), self.stain_jitter, np.array(stain))
        return turned(stained, symmetry), turned(ihc[place].copy(), symmetry)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Whole patches, cut to a multiple."""

    pairs: tuple[Pair, ...]
    multiple: int

    def batch(self, indices: list[int]) -> PairBatch:
        pairs = [self.pairs[index] for index in indices]
        return _stack([self._cut(pair) for pair in pairs], [pair.name for pair in pairs])

    def _cut(self, pair: Pair) -> _Sample:
        he, ihc = read_pair(pair)
        height, width = (side - side % self.multiple for side in he.shape[:2])
        if not height or not width:
            raise DatasetError(f"{pair.he}: a patch of {he.shape[1]}×{he.shape[0]} px is smaller than {self.multiple}")
        return he[:height, :width], ihc[:height, :width]


def turned(image: RGBImage, turn: int) -> RGBImage:
    """One of the eight symmetries of a square: odd turns mirror left to right, then turn // 2 right angles follow."""
    return np.rot90(image[:, ::-1] if turn % 2 else image, turn // 2)


def _stack(samples: Sequence[_Sample], names: Sequence[str]) -> PairBatch:
    he, ihc = (torch.from_numpy(np.stack(images)) for images in zip(*samples, strict=True))
    return PairBatch(he, ihc, tuple(names))


class _Guarded(Dataset[_Loaded]):
    """Hands failures over as their messages: exceptions of workers arrive wrapped in tracebacks."""

    def __init__(self, batches: _Crops | _Whole) -> None:
        self.batches = batches

    def __getitem__(self, key: Any) -> _Loaded:
        try:
            batch = self.batches.batch(key)
        except DatasetError as error:
            return str(error)
        return _Arrays(batch.he.numpy(), batch.ihc.numpy(), batch.names)


def _load(batches: _Crops | _Whole, keys: Iterable[Any], workers: int, pin: bool) -> Iterator[PairBatch]:
    """One loader for all keys, so that workers start once."""
    loader: DataLoader[_Loaded] = DataLoader(
        _Guarded(batches),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=_set_up_worker,
        multiprocessing_context=_context() if workers else None,
        # Its own, or every start would draw from torch's global generator and change the run.
        generator=torch.Generator(),
    )
    with starting_processes():  # workers start here, and the server that forks them
        stream = iter(loader)
    try:
        while (loaded := _next(stream, workers)) is not None:
            if isinstance(loaded, str):
                raise DatasetError(loaded)
            yield loaded.batch() if isinstance(loaded, _Arrays) else loaded
    finally:
        with uninterrupted():
            del stream  # ends the workers now, and not when somebody forgets the exception that holds this frame


def _next(stream: Iterator[_Loaded], workers: int) -> _Loaded | None:
    """What comes next, or None at the end."""
    try:
        return next(stream, None)
    except (RuntimeError, OSError, EOFError) as error:  # whichever of them the loader meets first
        if not workers:
            raise
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"a process that reads patches died ({reason:.100}); lower --workers") from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _set_up_worker(_: int) -> None:
    """One thread per worker, and no worker left behind."""
    torch.set_num_threads(1)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: multiprocessing.process.BaseProcess) -> None:
    """End this worker when the training process is gone.

    The loader's own watch looks at the process that forked the worker. That is the server here, which in turn lives as
    long as its workers: killed trainings would leave them all behind.
    """
    parent.join()
    os._exit(1)


def _context() -> multiprocessing.context.BaseContext:
    """How workers start: forked from a server that has imported all this once, and runs no threads.

    Forking the training process itself would copy locks that its threads hold (Python 3.12 warns of it), and starting
    each worker afresh costs the import of torch every time.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # by name: nothing but the server may import it
    context.set_forkserver_preload([f"{__package__}.worker_server", __name__])
    os.environ["WSI2IHC_WORKER_SERVER_FOLDER"] = multiprocessing.util.get_temp_dir()
    return context
