"""Batches of patches, decoded in worker processes.

`training_batches` and `whole_patches` describe which patches each batch takes (`_Keys`) and how they are cropped
(`_Crops`, `_Whole`); `_load` runs one `DataLoader` over them. Batches do not depend on the number of workers.
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

from wsi2ihc.errors import DatasetError, TrainingError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.system import starting_processes, uninterrupted
from wsi2ihc.text import pluralize

from .dataset import Augmentation, Pair
from .images import read_pair
from .stain_jitter import DRAWS, augment_stains

_SYMMETRIES = {"none": 1, "hflip": 2, "dihedral": 8}
"""Number of symmetries of `flip_and_rotate` from which an augmentation draws."""

_ORDER, _CROP = 0, 1
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
    """A batch on its way from a worker, as arrays.

    Tensors would be left in shared memory, of which containers have little, and be fetched by a thread of the worker
    that prints a traceback when the training process is interrupted.
    """

    he: RGBImage
    ihc: RGBImage
    names: tuple[str, ...]

    def pin_memory(self) -> PairBatch:
        """Return the batch in pinned memory; called by the loader's thread."""
        return PairBatch(torch.from_numpy(self.he).pin_memory(), torch.from_numpy(self.ihc).pin_memory(), self.names)

    def batch(self) -> PairBatch:
        return PairBatch(torch.from_numpy(self.he), torch.from_numpy(self.ihc), self.names)


_Loaded: TypeAlias = _Arrays | PairBatch | str
"""A batch, or an error message."""


def steps_per_epoch(pairs: Sequence[Pair], global_batch: int) -> int:
    """Return the number of full batches; an incomplete last one is dropped, since its variance would not be comparable.

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
    """Yield the batches of steps from ``first_step`` up to, but excluding, ``last_step``: random crops with random
    symmetries.

    Every epoch goes through the pairs in a new order. Memory: a worker takes about 50 MB, one decoded pair, and two
    prefetched batches; nothing is cached, so the size of the dataset does not matter.

    Parameters
    ----------
    stain_jitter
        Strength of `augment_stains`, applied to the H&E only; 0: none.
    batch_size
        Of this process; the global batch has ``processes`` times as many.
    process, processes
        Which slice of each global batch is returned.
    workers
        Processes that decode; 0: this one does. They live as long as the iterator.
    pin
        Put batches into page-locked memory, from which GPUs copy faster. It opens a CUDA context, so use it only with
        CUDA.

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
    """Yield full patches in order, cropped at the right and bottom to a multiple of ``multiple``.

    A batch holds neighbors of one size; it is smaller than ``batch_size`` where sizes change, and at the end. ``pin``
    and ``workers`` are those of `training_batches`.
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
    """The samples of every step: lists of (epoch, index of the pair)."""

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
    """Random crops; the random numbers depend only on the seed, the epoch and the pair."""

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
        # always draw all numbers, so that the positions of crops do not depend on symmetries and jitter
        x, y, symmetry, *stain = np.random.default_rng((self.seed, _CROP, epoch, index)).random(3 + DRAWS)
        left, top = int(x * (width - self.crop_px + 1)), int(y * (height - self.crop_px + 1))
        area = np.s_[top : top + self.crop_px, left : left + self.crop_px]
        index_of_symmetry = int(symmetry * _SYMMETRIES[self.augmentation])
        # copies: a view would keep the full patch until the batch is complete
        stained = augment_stains(he[area].copy(), self.stain_jitter, np.array(stain))
        return flip_and_rotate(stained, index_of_symmetry), flip_and_rotate(ihc[area].copy(), index_of_symmetry)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Full patches, cropped to a multiple."""

    pairs: tuple[Pair, ...]
    multiple: int

    def batch(self, indices: list[int]) -> PairBatch:
        pairs = [self.pairs[index] for index in indices]
        return _stack([self._crop(pair) for pair in pairs], [pair.name for pair in pairs])

    def _crop(self, pair: Pair) -> _Sample:
        he, ihc = read_pair(pair)
        height, width = (side - side % self.multiple for side in he.shape[:2])
        if not height or not width:
            raise DatasetError(f"{pair.he}: a patch of {he.shape[1]}×{he.shape[0]} px is smaller than {self.multiple}")
        return he[:height, :width], ihc[:height, :width]


def flip_and_rotate(image: RGBImage, index: int) -> RGBImage:
    """Apply one of the eight symmetries of a square: a horizontal flip if odd, then index // 2 rotations by 90°."""
    return np.rot90(image[:, ::-1] if index % 2 else image, index // 2)


def _stack(samples: Sequence[_Sample], names: Sequence[str]) -> PairBatch:
    he, ihc = (torch.from_numpy(np.stack(images)) for images in zip(*samples, strict=True))
    return PairBatch(he, ihc, tuple(names))


class _Guarded(Dataset[_Loaded]):
    """Dataset that returns errors as their messages: exceptions of workers arrive wrapped in tracebacks."""

    def __init__(self, batches: _Crops | _Whole) -> None:
        self.batches = batches

    def __getitem__(self, key: Any) -> _Loaded:
        try:
            batch = self.batches.batch(key)
        except DatasetError as error:
            return str(error)
        return _Arrays(batch.he.numpy(), batch.ihc.numpy(), batch.names)


def _load(batches: _Crops | _Whole, keys: Iterable[Any], workers: int, pin: bool) -> Iterator[PairBatch]:
    """Yield batches from one loader for all keys, so that workers start only once."""
    loader: DataLoader[_Loaded] = DataLoader(
        _Guarded(batches),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        worker_init_fn=_set_up_worker,
        multiprocessing_context=_context() if workers else None,
        # separate from torch's global generator, from which every start would draw otherwise
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
            del stream  # ends the workers now, not when the exception that holds this frame is collected


def _next(stream: Iterator[_Loaded], workers: int) -> _Loaded | None:
    """Return the next item, or None at the end."""
    try:
        return next(stream, None)
    except (RuntimeError, OSError, EOFError) as error:  # the loader may raise any of these
        if not workers:
            raise
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"a process that reads patches died ({reason:.100}); lower --workers") from error


def _unchanged(batch: Any) -> Any:
    return batch


def _set_up_worker(_: int) -> None:
    """Use one thread per worker, and end the worker with the training process."""
    torch.set_num_threads(1)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """End this worker when the training process has ended.

    The loader itself watches the process that forked the worker. That is the server here, which lives as long as its
    workers: if a training process is killed, they would all keep running.
    """
    parent.join()
    os._exit(1)


def _context() -> multiprocessing.context.BaseContext:
    """Return the start method of workers: forked from a server that has imported all modules and runs no threads.

    Forking the training process itself would copy locks that its threads hold (Python 3.12 warns about it), and
    spawning each worker costs the import of torch every time.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # by name: only the server may import it
    context.set_forkserver_preload([f"{__package__}.worker_server", __name__])
    os.environ["WSI2IHC_WORKER_SERVER_FOLDER"] = multiprocessing.util.get_temp_dir()
    return context
