"""Batches depend only on seed and step, not on workers and processes; pairs stay aligned."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_pairs import SIZE, he_pixels, ihc_pixels, save, side_by_side

from wsi2ihc.errors import DatasetError, TrainingError
from wsi2ihc.training.data import Pair, find_pairs, loader
from wsi2ihc.training.data.loader import PairBatch, flip_and_rotate, steps_per_epoch, training_batches, whole_patches

NAMES = tuple(f"p{number:02}" for number in range(14))
WIDTH, HEIGHT = SIZE


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, ...]:
    return find_pairs(side_by_side(tmp_path_factory.mktemp("pairs"), {"": NAMES})).pairs


def stream(pairs: tuple[Pair, ...], **changes: Any) -> list[PairBatch]:
    """Ten steps in batches of 4, which is three epochs and a third, unless changed."""
    settings: dict[str, Any] = {"crop_px": 16, "augmentation": "dihedral", "batch_size": 4, "seed": 3, "last_step": 10}
    return list(training_batches(pairs, **settings | changes))


def assert_same(ones: list[PairBatch], others: list[PairBatch]) -> None:
    assert [one.names for one in ones] == [other.names for other in others]
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.he, other.he)
        assert torch.equal(one.ihc, other.ihc)


def differ(ones: list[PairBatch], others: list[PairBatch]) -> bool:
    return any(not torch.equal(one.he, other.he) for one, other in zip(ones, others, strict=True))


# format of a batch


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_format(pairs: tuple[Pair, ...], workers: int) -> None:
    for batch in stream(pairs, workers=workers, last_step=2):
        assert batch.he.shape == batch.ihc.shape == (4, 16, 16, 3)
        assert batch.he.dtype == batch.ihc.dtype == torch.uint8
        assert batch.he.is_contiguous()
        assert len(set(batch.names)) == 4
        assert set(batch.names) <= set(NAMES)


@pytest.mark.parametrize("augmentation", ["none", "hflip", "dihedral"])
def test_pairs_stay_aligned(pairs: tuple[Pair, ...], augmentation: str) -> None:
    """The IHC is the H&E's negative, so it is so in every crop."""
    for batch in stream(pairs, augmentation=augmentation):
        assert torch.equal(batch.ihc, 255 - batch.he)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, ...]:
    """Pairs whose pixels encode their position: red is x, green is y."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image = np.dstack([x, y, np.zeros_like(x)])
    folder = tmp_path_factory.mktemp("maps")
    for name in NAMES:
        save(np.hstack([image, 255 - image]), folder / f"{name}.png")
    return find_pairs(folder).pairs


def place_of(crop: np.ndarray) -> tuple[int, int, int]:
    """Where a crop of a map comes from, and how it is flipped and rotated: x, y, symmetry."""
    x, y = (int(crop[..., channel].min()) for channel in (0, 1))
    rows, columns = np.mgrid[y : y + crop.shape[0], x : x + crop.shape[1]]
    part = np.dstack([columns, rows, np.zeros_like(rows)])
    (symmetry,) = (index for index in range(8) if np.array_equal(flip_and_rotate(part, index), crop))
    return x, y, symmetry


@pytest.mark.parametrize(
    ("augmentation", "symmetries"), [("none", {0}), ("hflip", {0, 1}), ("dihedral", set(range(8)))]
)
def test_crops_are_symmetries_of_parts_of_their_pair(
    maps: tuple[Pair, ...], augmentation: str, symmetries: set[int]
) -> None:
    """Crops lie all over the patch, evenly, and have all symmetries."""
    batches = stream(maps, augmentation=augmentation, crop_px=24, last_step=150)
    places = [place_of(crop) for batch in batches for crop in batch.he.numpy()]
    for axis, choices in enumerate((set(range(WIDTH - 24 + 1)), set(range(HEIGHT - 24 + 1)), symmetries)):
        counts = Counter(place[axis] for place in places)
        assert set(counts) == choices
        assert max(counts.values()) < 2 * 600 / len(choices)


def test_crop_positions_do_not_depend_on_symmetries(pairs: tuple[Pair, ...]) -> None:
    for plain, mirrored in zip(stream(pairs, augmentation="none"), stream(pairs, augmentation="hflip"), strict=True):
        for one, other in zip(plain.he.numpy(), mirrored.he.numpy(), strict=True):
            assert np.array_equal(one, other) or np.array_equal(one[:, ::-1], other)


def test_stain_jitter_changes_only_the_he(pairs: tuple[Pair, ...]) -> None:
    changed = 0
    for plain, jittered in zip(stream(pairs), stream(pairs, stain_jitter=0.3), strict=True):
        assert torch.equal(plain.ihc, jittered.ihc)
        changed += sum(not torch.equal(one, other) for one, other in zip(plain.he, jittered.he, strict=True))
    assert changed == 40


def test_eight_symmetries() -> None:
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    images = [flip_and_rotate(square, turn) for turn in range(8)]
    assert len({image.tobytes() for image in images}) == 8
    np.testing.assert_array_equal(images[0], square)
    np.testing.assert_array_equal(images[1], square[:, ::-1])
    np.testing.assert_array_equal(images[4], square[::-1, ::-1])


def test_crop_as_high_as_the_patch(maps: tuple[Pair, ...]) -> None:
    batches = stream(maps, crop_px=HEIGHT)
    assert {place_of(crop)[1] for batch in batches for crop in batch.he.numpy()} == {0}


# which pairs come when


def test_every_epoch_has_every_pair_at_most_once_in_a_new_order(pairs: tuple[Pair, ...]) -> None:
    names = [batch.names for batch in stream(pairs, last_step=30)]
    epochs = [tuple(itertools.chain(*names[start : start + 3])) for start in range(0, 30, 3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len(set(epochs)) == 10
    # two of 14 are left out in each, not always the same ones
    assert set(Counter(itertools.chain(*epochs))) == set(NAMES)


def test_crops_differ_between_epochs(pairs: tuple[Pair, ...]) -> None:
    batches = stream(pairs[:4], last_step=6)
    crops = {batch.he[batch.names.index("p00")].numpy().tobytes() for batch in batches}
    assert len(crops) == 6


def test_seed(pairs: tuple[Pair, ...]) -> None:
    assert_same(stream(pairs), stream(pairs))
    assert differ(stream(pairs), stream(pairs, seed=4))


@pytest.mark.parametrize("first", [1, 3, 7])
def test_resumed_stream_is_the_same(pairs: tuple[Pair, ...], first: int) -> None:
    assert_same(stream(pairs, first_step=first), stream(pairs)[first:])


def test_workers_change_nothing(pairs: tuple[Pair, ...]) -> None:
    assert_same(stream(pairs, workers=2), stream(pairs))


def _join(parts: tuple[PairBatch, ...]) -> PairBatch:
    names = tuple(name for part in parts for name in part.names)
    return PairBatch(torch.cat([part.he for part in parts]), torch.cat([part.ihc for part in parts]), names)


@pytest.mark.parametrize("processes", [2, 3])
def test_slices_of_processes_make_up_the_global_batch(pairs: tuple[Pair, ...], processes: int) -> None:
    whole = stream(pairs, batch_size=6)
    parts = [stream(pairs, batch_size=6 // processes, process=one, processes=processes) for one in range(processes)]
    joined = [_join(some) for some in zip(*parts, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_states_do_not_change(pairs: tuple[Pair, ...], workers: int) -> None:
    """Or a resumed run would not go on as the uninterrupted one."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    stream(pairs, workers=workers, last_step=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_no_steps(pairs: tuple[Pair, ...]) -> None:
    assert stream(pairs, first_step=10) == []


def test_steps_per_epoch(pairs: tuple[Pair, ...]) -> None:
    assert [steps_per_epoch(pairs, batch) for batch in (1, 4, 7, 8, 14)] == [14, 3, 2, 1, 1]
    with pytest.raises(DatasetError, match="a batch of 15 is larger than the 14 training pairs; lower --batch-size"):
        steps_per_epoch(pairs, 15)
    with pytest.raises(DatasetError, match="a batch of 16"):
        stream(pairs, batch_size=8, processes=2)


# full patches


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Pair, ...]:
    """Two patches of one size, two of another, and one of the first again."""
    for name, size in (("a", (42, 35)), ("b", (42, 35)), ("c", (20, 50)), ("d", (22, 51)), ("e", (42, 35))):
        save(he_pixels(name, size), tmp_path / "HE" / f"{name}.png")
        save(ihc_pixels(name, size), tmp_path / "IHC" / f"{name}.png")
    return find_pairs(tmp_path).pairs


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_patches(mixed: tuple[Pair, ...], workers: int) -> None:
    batches = list(whole_patches(mixed, batch_size=3, multiple=4, workers=workers))
    assert ["".join(pair.name for pair in members) for members, _ in batches] == ["ab", "cd", "e"]
    for members, batch in batches:
        assert batch.names == tuple(pair.name for pair in members)
        assert torch.equal(batch.ihc, 255 - batch.he)
    assert [tuple(batch.he.shape[1:3]) for _, batch in batches] == [(32, 40), (48, 20), (32, 40)]
    assert batches[0][1].he.is_contiguous()
    np.testing.assert_array_equal(batches[0][1].he[1].numpy(), he_pixels("b", (42, 35))[:32, :40])


def test_full_patches_fill_their_batches(pairs: tuple[Pair, ...]) -> None:
    members = [members for members, _ in whole_patches(pairs, batch_size=4, multiple=1)]
    assert [len(some) for some in members] == [4, 4, 4, 2]
    assert tuple(itertools.chain(*members)) == pairs
    assert list(whole_patches((), batch_size=4, multiple=1)) == []


def test_whole_patch_smaller_than_the_multiple(mixed: tuple[Pair, ...]) -> None:
    with pytest.raises(DatasetError, match=r"c.png: a patch of 20×50 px is smaller than 32"):
        list(whole_patches(mixed, batch_size=2, multiple=32))


@pytest.mark.parametrize("pin", [False, True])
def test_pinned_memory(pairs: tuple[Pair, ...], pin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it opens a CUDA context, nothing may pin by itself, GPU or not."""
    asked: list[bool] = []

    class Loader(torch.utils.data.DataLoader[Any]):
        def __init__(self, *arguments: Any, pin_memory: bool, **others: Any) -> None:
            asked.append(pin_memory)
            super().__init__(*arguments, **others)

    monkeypatch.setattr(loader, "DataLoader", Loader)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = {"pin": True} if pin else {}
    assert len(stream(pairs, last_step=1, **chosen)) == 1
    assert len(list(whole_patches(pairs[:1], batch_size=1, multiple=4, **chosen))) == 1
    assert asked == [pin, pin]


# failures


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Six patches of which the last is cut off in the middle."""
    side_by_side(tmp_path, {"": NAMES[:6]})
    path = tmp_path / "p05.png"
    path.write_bytes(path.read_bytes()[:1500])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_file_is_a_one_line_error(damaged: Path, workers: int) -> None:
    pairs = find_pairs(damaged).pairs
    for batches in (
        training_batches(pairs, crop_px=16, augmentation="none", batch_size=2, seed=0, last_step=3, workers=workers),
        whole_patches(pairs, batch_size=2, multiple=4, workers=workers),
    ):
        with pytest.raises(DatasetError) as caught:
            list(batches)
        assert str(caught.value).startswith(f"{damaged / 'p05.png'} cannot be decoded")
        assert "\n" not in str(caught.value)
        assert not multiprocessing.active_children()  # although the exception is still held


def test_patch_in_a_batch_smaller_than_the_crop(pairs: tuple[Pair, ...]) -> None:
    with pytest.raises(DatasetError, match=r"png: a patch of 40×32 px is smaller than the crop of 48"):
        stream(pairs, crop_px=48)


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("DataLoader worker (pid(s) 7) exited\nmore"), ConnectionResetError(104, "reset")],
)
def test_dead_worker(pairs: tuple[Pair, ...], failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's loader reports it, which takes it up to ten seconds; so it is played here."""

    class Loader:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __iter__(self) -> Iterator[Any]:
            raise failure
            yield

    monkeypatch.setattr(loader, "DataLoader", Loader)
    with pytest.raises(TrainingError, match=r"^a process that reads patches died \(.*\); lower --workers$"):
        stream(pairs, workers=1)
    with pytest.raises(type(failure)):
        stream(pairs, workers=0)


def test_workers_end_with_the_iterator(pairs: tuple[Pair, ...]) -> None:
    batches = training_batches(
        pairs, crop_px=16, augmentation="none", batch_size=2, seed=0, last_step=10_000, workers=2
    )
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    assert isinstance(batches, Iterator)
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_a_killed_training_process(pairs: tuple[Pair, ...]) -> None:
    script = f"""
        import multiprocessing, time
        from pathlib import Path
        from wsi2ihc.training.data import find_pairs
        from wsi2ihc.training.data.loader import training_batches

        pairs = find_pairs(Path({str(pairs[0].he.parent)!r})).pairs
        batches = training_batches(
            pairs, crop_px=16, augmentation="none", batch_size=2, seed=0, last_step=10_000, workers=2
        )
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        workers = [int(pid) for pid in training.stdout.readline().split()]
        training.kill()
    assert len(workers) == 2
    patience = time.monotonic() + 30  # busy machines take their time
    while any(is_alive(pid) for pid in workers) and time.monotonic() < patience:
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in workers)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("from wsi2ihc.training.data import load_data, check_images, decode_pairs", {"torch"}),
        ("from wsi2ihc.training.data import Augmentation, Order, Pair", {"torch", "PIL", "imagecodecs", "numpy"}),
        ("import wsi2ihc.training.options", {"torch", "PIL", "imagecodecs"}),
    ],
)
def test_lazy_imports(statement: str, unwanted: set[str]) -> None:
    """Looking at data needs no torch, and naming its types no decoders."""
    code = f"import sys; {statement}; sys.exit(' '.join({unwanted} & sys.modules.keys()) or 0)"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_public_names() -> None:
    from wsi2ihc.training import data

    assert all(getattr(data, name) is not None for name in data.__all__)
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = data.nothing


_HELD = """
import sys, time
from wsi2ihc.training.data.loader import _context

if __name__ == "__main__":
    process = _context().Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    print(process.pid, flush=True)
    if len(sys.argv) > 1:
        process.kill()
        process.join()
    else:
        time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("arguments", [(), ("ends",)])
def test_killed_training_leaves_no_temporary_folder(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    script, temporary = tmp_path / "held.py", tmp_path / "tmp"
    script.write_text(_HELD)
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, *arguments], env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    if not arguments:
        process.kill()
        os.kill(worker, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    until = time.monotonic() + 20
    while any(temporary.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not list(temporary.iterdir())
