"""A data set that was killed anywhere and run again is the one that was never killed, byte for byte."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2ihc.errors import DatasetError, OptionError, OutputError, SlideNotFoundError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.data import Role, load_data, read_pair
from wsi2ihc.training.data.layouts import find_pairs
from wsi2ihc.training.pairs import dataset_writer
from wsi2ihc.training.pairs.dataset_writer import METRICS, DatasetFolder, open_dataset_folder, publish
from wsi2ihc.training.pairs.options import PairsOptions
from wsi2ihc.training.pairs.pair_manifest import SlidePair
from wsi2ihc.training.pairs.quality import Limits
from wsi2ihc.training.pairs.slide_record import SlideRecord, SlideWriter, encode_patch, fingerprint_of, read_record

PX = 8
OPTIONS: dict[str, Any] = {"patch_px": PX, "mpp": 0.46}
LIMITS = Limits(max_pen=1.0)
GOOD = dict.fromkeys(METRICS, 1.0) | {"folds": 0.0, "residual_um": None}
STATEMENT = {
    "mpp": 0.46, "stain": "HER2", "license": "CC0", "name": "ours", "patch_px": PX, "seed": 3,
    "failed": [{"slide": "S9", "reason": "it could not be read"}],
}  # fmt: skip
ROLES: dict[str, Role] = {"Sa": "train", "Sb": "validation", "Sc": "test", "Sd": "train"}
AT = ((0, 0), (PX, 0), (0, PX), (PX, PX))


class KilledError(BaseException):
    """Stands for ``kill -9``: nothing catches it on purpose."""


@pytest.fixture(autouse=True)
def _no_power_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing through to the disk takes most of the time, and protects from nothing that is tested here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def pairs(tmp_path: Path) -> list[SlidePair]:
    levels = {"a": "2+", "b": "0", "c": None, "d": "3+"}
    return [make_pair(tmp_path, name, level) for name, level in levels.items()]


def make_pair(folder: Path, name: str, level: str | None) -> SlidePair:
    slides = [folder / f"{name}_{kind}.svs" for kind in ("he", "ihc")]
    for slide in slides:
        slide.write_bytes(b"slide")
    return SlidePair(2, f"P{name}", f"S{name}", slides[0], slides[1], level)


def image(slide: str, at: tuple[int, int], stain: int) -> RGBImage:
    seed = [*slide.encode(), *at, stain]
    return np.random.default_rng(seed).integers(0, 256, (PX, PX, 3), np.uint8)


def cut(
    dataset: DatasetFolder, pair: SlidePair, kept: Sequence[int] = (0, 1, 3), side_by_side: bool = False,
    limits: Limits = LIMITS,
) -> SlideRecord:  # fmt: skip
    """What a build does of one slide: look whether it is complete, else extract it; one patch of four is left out."""
    fingerprint = fingerprint_of(pair)
    if record := dataset.find(pair.slide, fingerprint, limits):
        return record
    writer = SlideWriter(dataset.new_extraction(pair.slide, fingerprint, limits), side_by_side=side_by_side)
    for number, at in enumerate(AT):
        metrics: Mapping[str, float | None] = GOOD | {"pen": number / 3, "tissue_he": 1.0 if number in kept else 0.1}
        images = [image(pair.slide, at, stain) for stain in (0, 1)]
        encoded = encode_patch(images[0], images[1], side_by_side=side_by_side) if number in kept else None
        reason = "" if encoded else "tissue"
        writer.add(at, (at[0] * 0.455, at[1] * 0.455), metrics, rejected=reason, encoded=encoded)
    return writer.complete(fingerprint, 0.455, limits, {"angle_deg": 3.5}, row="row")


def run(
    folder: Path,
    pairs: Sequence[SlidePair],
    roles: Mapping[str, Role] = ROLES,
    kept: Sequence[int] = (0, 1, 3),
    **how: Any,
) -> Path:
    with open_dataset_folder(folder, OPTIONS) as dataset:
        slides = [(pair, cut(dataset, pair, kept, **how)) for pair in pairs]
        publish(dataset, slides, roles, STATEMENT)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """All files and empty folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def rows(folder: Path, name: str = "pairs.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# what a data set is


def test_layout(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    keys = {slide: next((folder / "patches" / slide).iterdir()).name for slide in ROLES}
    stems = [f"patches/{slide}/{keys[slide]}/{slide}_{number:05}" for slide in ROLES for number in (0, 1, 3)]
    assert [row["he"] for row in rows(folder)] == [f"{stem}_he.png" for stem in stems]
    assert [row["ihc"] for row in rows(folder)] == [f"{stem}_ihc.png" for stem in stems]
    assert [row["split"] for row in rows(folder)] == ["train"] * 3 + ["val"] * 3 + ["test"] * 3 + ["train"] * 3
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert found == {f"{stem}_{stain}.png" for stain in ("he", "ihc") for stem in stems}
    first = rows(folder)[2]
    assert (first["number"], first["split"], first["patient"], first["slide"]) == ("2", "train", "Pa", "Sa")
    assert (first["her2"], first["mpp"], first["grid_mpp"]) == ("2+", "0.46", "0.455")
    assert (first["x_um"], first["y_um"], first["pen"], first["residual_um"]) == ("3.640", "3.640", "1", "")
    (rejected, *_), count = rows(folder, "rejected.csv"), len(rows(folder, "rejected.csv"))
    assert (count, rejected["reason"], rejected["slide"], rejected["x_um"]) == (4, "tissue", "Sa", "0.000")


def test_dataset_json(tmp_path: Path, pairs: list[SlidePair]) -> None:
    statement = json.loads((run(tmp_path / "data", pairs) / "dataset.json").read_text())
    assert {name: statement[name] for name in ("mpp", "stain", "license", "patch_px", "seed", "failed")} == {
        "mpp": 0.46,
        "stain": "HER2",
        "license": "CC0",
        "patch_px": PX,
        "seed": 3,
        "failed": [{"slide": "S9", "reason": "it could not be read"}],
    }
    assert statement["counts"]["train"] == {"pairs": 6, "slides": 2, "patients": 2, "her2": {"2+": 3, "3+": 3}}
    assert statement["counts"]["test"] == {"pairs": 3, "slides": 1, "patients": 1}
    assert statement["without_residual"] == 12
    assert statement["rejected"] == {
        "reasons": {"tissue": 4},
        "her2": {level: {"tissue": 1} for level in ("", "0", "2+", "3+")},
    }


@pytest.mark.parametrize("side_by_side", [False, True])
def test_training_reads_it(tmp_path: Path, pairs: list[SlidePair], side_by_side: bool) -> None:
    data = load_data(run(tmp_path / "data", pairs, side_by_side=side_by_side))
    stated = (data.mpp, data.stain, data.license, data.name, data.grouped_by)
    assert stated == (0.46, "HER2", "CC0", "ours", "patient")
    assert {(pair.group, pair.role) for pair in data.pairs} == {
        ("Pa", "train"),
        ("Pb", "validation"),
        ("Pc", "test"),
        ("Pd", "train"),
    }
    assert [pair.number for pair in data.pairs] == list(range(12))
    pair = data.pairs[5]
    assert (pair.slide, pair.her2, pair.half) == ("Sb", "0", "left" if side_by_side else "")
    for stain, pixels in enumerate(read_pair(pair)):
        np.testing.assert_array_equal(pixels, image("Sb", AT[3], stain))


def test_side_by_side(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs, side_by_side=True)
    found = sorted(path.name for path in folder.rglob("*.png"))
    assert (len(found), found[0]) == (12, "Sa_00000.png")
    assert {row["half"] for row in rows(folder)} == {"left"}
    assert all(row["he"] == row["ihc"] and row["sha256_he"] == row["sha256_ihc"] for row in rows(folder))


def test_figures_that_are_no_numbers(tmp_path: Path) -> None:
    writer = SlideWriter(tmp_path / "Sa" / "01234567")
    metrics = {"tissue_he": 0.5, "tissue_ihc": 0.5, "pen": float("nan"), "valid": np.float32(0.5)}
    writer.add((0, 0), (0.0, 0.0), metrics, rejected="pen")
    written = writer.complete("x", 0.46, LIMITS)
    assert written.patches[0].metrics == {"tissue_he": 0.5, "tissue_ihc": 0.5, "pen": None, "valid": 0.5}
    assert read_record(tmp_path / "Sa" / "01234567") == written
    with pytest.raises(ValueError, match="either rejected or has files"):
        writer.add((0, 0), (0.0, 0.0), {})


# again, and with changes


def test_a_second_run_changes_nothing(tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "data", pairs)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(DatasetFolder, "new_extraction", lambda *_: pytest.fail("a slide is extracted again"))
    run(folder, pairs)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


FEW = (0, 3)
MOVED = (1.0, 0.0, 5.0, 0.0, 1.0, 0.0)
Change = Callable[[list[SlidePair]], tuple[list[SlidePair], Mapping[str, Role]]]
CHANGES: dict[str, Change] = {
    "another split": lambda pairs: (pairs, ROLES | {"Sb": "train", "Sa": "test"}),
    "another order": lambda pairs: (pairs[::-1], ROLES),
    "another level": lambda pairs: ([dataclasses.replace(pairs[0], her2="1+"), *pairs[1:]], ROLES),
    "another patient": lambda pairs: ([dataclasses.replace(pairs[0], patient="Q"), *pairs[1:]], ROLES),
    "a row less": lambda pairs: (pairs[1:], ROLES),
    "another transform": lambda pairs: ([dataclasses.replace(pairs[0], transform=MOVED), *pairs[1:]], ROLES),
}  # fmt: skip


def comparable(folder: Path) -> dict[str, bytes]:
    """A dataset without extractions that are not in its index."""
    indexed = {row["he"].rpartition("/")[0] for row in rows(folder)}
    return {
        name: content
        for name, content in tree(folder).items()
        if not name.startswith("patches/") or "/".join(name.split("/")[:3]) in indexed
    }


def contents(folder: Path) -> list[dict[str, object]]:
    """The index with checksums of the files instead of their paths; all of them belong to the same extractions."""
    found = rows(folder)
    assert len({row["he"].rpartition("/")[0] for row in found}) == len({row["slide"] for row in found})
    return [row | {name: hashlib.sha256((folder / row[name]).read_bytes()).hexdigest() for name in ("he", "ihc")}
            for row in found]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_manifest_gives_what_a_new_run_gives(tmp_path: Path, pairs: list[SlidePair], change: str) -> None:
    folder = run(tmp_path / "data", pairs)
    changed, roles = CHANGES[change](pairs)
    assert comparable(run(folder, changed, roles)) == comparable(run(tmp_path / "new", changed, roles))
    assert comparable(run(folder, pairs)) == comparable(run(tmp_path / "old", pairs))


def test_a_mended_row_joins_the_others(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", [pairs[0], pairs[2]])
    assert tree(run(folder, pairs)) == tree(run(tmp_path / "new", pairs))


@pytest.mark.parametrize("gone", ["Sa_00001_he.png", "record.json"])
def test_what_is_gone_is_extracted_again(tmp_path: Path, pairs: list[SlidePair], gone: str) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = contents(folder)
    (lost,) = folder.glob(f"patches/Sa/*/{gone}")
    lost.unlink()
    assert contents(run(folder, pairs)) == complete
    assert lost.parent not in folder.glob("patches/Sa/*")  # nothing of the damaged extraction is used
    assert len(list(folder.glob("patches/*/*"))) == 4


def test_a_patch_changed_at_equal_size_is_extracted_again(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = contents(folder)
    changed = next(folder.glob("patches/Sa/*/*_ihc.png"))
    intact = changed.read_bytes()
    later = changed.stat().st_mtime + 60
    os.utime(changed, (later, later))  # touched only
    run(folder, pairs)
    assert changed.exists()
    changed.write_bytes(intact[::-1])
    os.utime(changed, (later, later))
    assert contents(run(folder, pairs)) == complete
    assert not changed.exists()


def test_a_damaged_record_is_extracted_again(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = contents(folder)
    for damage in ("{", "[]", '{"patches": 1}', '{"slide": "Sa", "patches": [{}]}'):
        next(folder.glob("patches/Sa/*/record.json")).write_text(damage)
        assert contents(run(folder, pairs)) == complete


def test_a_record_of_another_slide_is_not_used(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = contents(folder)
    (one,), (other,) = folder.glob("patches/Sa/*/record.json"), folder.glob("patches/Sb/*/record.json")
    one.write_bytes(other.read_bytes())
    assert contents(run(folder, pairs)) == complete


def test_a_patch_that_goes_before_the_index_is_written(tmp_path: Path, pairs: list[SlidePair]) -> None:
    with open_dataset_folder(tmp_path / "data", OPTIONS) as dataset:
        slides = [(pair, cut(dataset, pair)) for pair in pairs]
        next(tmp_path.glob("data/patches/Sb/*/*.png")).unlink()
        with pytest.raises(OutputError, match=r"is missing or damaged; run again"):
            publish(dataset, slides, ROLES, STATEMENT)
    assert not (tmp_path / "data" / "pairs.csv").exists()
    assert tree(run(tmp_path / "data", pairs)) == tree(run(tmp_path / "new", pairs))


# other limits


def test_stricter_limits_move_no_patch(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    files = {path: path.stat().st_mtime_ns for path in (folder / "patches").rglob("*")}
    before = rows(folder)
    stricter = Limits(max_pen=0.5)  # the patches have 0, 1/3 and 1
    run(folder, pairs, limits=stricter)
    assert {path: path.stat().st_mtime_ns for path in (folder / "patches").rglob("*")} == files
    assert [row["pen"] for row in rows(folder)] == ["0", "0.33333"] * 4
    assert [row["reason"] for row in rows(folder, "rejected.csv")] == ["tissue", "pen"] * 4
    assert json.loads((folder / "dataset.json").read_text())["rejected"]["reasons"] == {"tissue": 4, "pen": 4}
    run(folder, pairs)
    assert {path: path.stat().st_mtime_ns for path in (folder / "patches").rglob("*")} == files
    assert rows(folder) == before


def test_looser_limits_extract_where_a_patch_has_no_file(tmp_path: Path, pairs: list[SlidePair]) -> None:
    strict, loose = Limits(min_tissue=0.5, max_pen=1.0), Limits(min_tissue=0.0, max_pen=1.0)
    folder = run(tmp_path / "data", pairs, limits=strict)
    before = {path.parent.name: path.name for path in folder.glob("patches/*/*")}
    assert contents(run(folder, pairs, kept=(0, 1, 2, 3), limits=loose)) == contents(
        run(tmp_path / "new", pairs, kept=(0, 1, 2, 3), limits=loose)
    )
    after = {path.parent.name: path.name for path in folder.glob("patches/*/*")}
    assert all(after[slide] != before[slide] for slide in after)
    run(folder, pairs, kept=(), limits=strict)  # not extracted again, or no patch would be kept
    assert {path.parent.name: path.name for path in folder.glob("patches/*/*")} == after


@pytest.mark.parametrize(
    ("metrics", "changes", "is_usable"),
    [
        ({"valid": 0.0}, {"min_valid": 0.5}, True),
        ({"valid": 0.6}, {"min_valid": 0.7}, False),  # sampled, so that it is uncertain
        ({"valid": 0.6}, {"min_valid": 0.5}, False),
        ({"valid": 1.0, "tissue_he": 0.2}, {"min_tissue": 0.3}, True),
        ({"valid": 1.0, "tissue_he": 0.2}, {"min_tissue": 0.1}, False),
    ],
)
def test_patches_that_were_not_read_are_judged_only_where_the_masks_decide(
    tmp_path: Path, metrics: dict[str, float], changes: dict[str, float], is_usable: bool
) -> None:
    writer = SlideWriter(tmp_path / "Sa" / "01234567")
    writer.add((0, 0), (0, 0), {"tissue_he": 1.0, "tissue_ihc": 1.0, **metrics}, rejected="outside")
    record = writer.complete("x", 1.0, Limits())
    assert record.with_limits(Limits()) is record
    assert (record.with_limits(Limits(**changes)) is not None) == is_usable


def test_limits_of_a_given_transform_need_a_measured_agreement(tmp_path: Path) -> None:
    encoded = encode_patch(image("a", (0, 0), 0), image("a", (0, 0), 1), side_by_side=False)
    metrics = {"tissue_he": 1.0, "tissue_ihc": 1.0, "valid": 1.0, "sharpness_he": 1.0}
    for is_verified in (False, True):
        writer = SlideWriter(tmp_path / str(is_verified) / "01234567")
        writer.add((0, 0), (0, 0), metrics, encoded=encoded)
        record = writer.complete("x", 1.0, Limits(min_correlation=-1), verified=is_verified).with_limits(Limits())
        assert record is not None
        assert record.patches[0].rejected == ("" if is_verified else "correlation")


# killed


class Killer:
    """Counts all that changes the disk, and raises before the call of one number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.at = 0, -1
        for home, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "link"), (os, "rmdir"), (os, "mkdir")):
            monkeypatch.setattr(home, name, self._counting(getattr(home, name)))
        for name in ("replace", "unlink", "write_bytes"):
            monkeypatch.setattr(Path, name, self._counting(getattr(Path, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > self.at >= 0:  # from here on nothing works: the process is dead
                if function.__name__ == "write_bytes" and self.calls == self.at + 1:
                    function(args[0], args[1][: len(args[1]) // 2])
                raise KilledError
            return function(*args, **kwargs)

        return counted


def kill_everywhere(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> Iterator[int]:
    """Kill the work at its first change of the disk, then at the second, and so on, until it comes to its end."""
    at = 0
    while True:
        with monkeypatch.context() as patched:
            killer = Killer(patched)
            killer.at = at
            try:
                work()
            except KilledError:
                killed = True
            else:
                killed = False
        if not killed:
            return
        yield at
        at += 1


def test_killed_anywhere_on_the_way_to_a_new_data_set(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs[:2]
    complete = tree(run(tmp_path / "whole", pairs))
    folder = tmp_path / "none"

    def fresh() -> None:
        run(folder, pairs)

    moments = 0
    for at in kill_everywhere(monkeypatch, fresh):
        if (folder / "dataset.json").exists():
            assert (folder / "pairs.csv").exists()
        assert tree(run(folder, pairs)) == complete, f"killed at {at}"
        moments += 1
        folder = tmp_path / str(at)
    assert moments > 40  # patches, records, renames of all files


KEPT_CHANGES = {**CHANGES, "other limits": lambda pairs: (pairs, ROLES)}


@pytest.mark.parametrize("change", KEPT_CHANGES)
def test_killed_anywhere_on_the_way_to_a_changed_data_set(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pairs = pairs[:2]
    changed, roles = KEPT_CHANGES[change](pairs)
    limits = Limits(max_pen=0.5) if change == "other limits" else LIMITS
    first = run(tmp_path / "was", pairs, kept=FEW)
    was, index_was = comparable(first), contents(first)
    wanted = comparable(run(tmp_path / "wanted", changed, roles, kept=FEW, limits=limits))
    if change == "other limits":  # the extractions are those of before
        wanted = comparable(run(shutil.copytree(first, tmp_path / "again"), changed, roles, kept=FEW, limits=limits))
        index_wanted = contents(tmp_path / "again")
    else:
        index_wanted = contents(tmp_path / "wanted")
    folder = shutil.copytree(first, tmp_path / "first")

    def rerun() -> None:
        run(folder, changed, roles, kept=FEW, limits=limits)

    for at in kill_everywhere(monkeypatch, rerun):
        # the index is that of before or the new one at every moment, and all its patches are there
        assert contents(folder) in (index_was, index_wanted), f"killed at {at}"
        find_pairs(folder)
        if (folder / "dataset.json").exists():
            seen = {name: content for name, content in comparable(folder).items() if Path(name).name[0] != "."}
            assert seen in (was, wanted), f"said to be complete, but is not, when killed at {at}"
        if at % 2:  # back again: a third way between the two
            assert comparable(run(folder, pairs, kept=FEW)) == was, f"killed at {at}"
        assert comparable(run(folder, changed, roles, kept=FEW, limits=limits)) == wanted, f"killed at {at}"
        folder = shutil.copytree(first, tmp_path / str(at))


def test_killed_anywhere_on_the_way_to_a_repaired_data_set(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal inputs, but not the folder of the patches that the index still names."""
    first = run(tmp_path / "was", pairs[:2], kept=FEW)
    wanted = contents(first)
    damaged = next(first.glob("patches/Sa/*/*_he.png"))
    damaged.write_bytes(b"damaged")
    folder = shutil.copytree(first, tmp_path / "first")

    def rerun() -> None:
        run(folder, pairs[:2], kept=FEW)

    for at in kill_everywhere(monkeypatch, rerun):
        different = [
            row["he"] for row, other in zip(rows(folder), wanted, strict=True)
            if hashlib.sha256((folder / row["he"]).read_bytes()).hexdigest() != other["he"]
        ]  # fmt: skip
        assert different in ([damaged.relative_to(first).as_posix()], []), f"killed at {at}"
        assert contents(run(folder, pairs[:2], kept=FEW)) == wanted, f"killed at {at}"
        assert len(list(folder.glob("patches/*/*"))) == 2
        folder = shutil.copytree(first, tmp_path / str(at))


def test_killed_again_and_again_in_one_folder(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    for _ in kill_everywhere(monkeypatch, lambda: run(folder, pairs)):
        pass
    assert tree(folder) == tree(run(tmp_path / "whole", pairs))


def test_no_file_moves(tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("moved"))
    replace, moved = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *paths: (moved.append(Path(paths[1]).name), replace(*paths)))
    run(tmp_path / "data", pairs)
    run(tmp_path / "data", *CHANGES["another split"](pairs))
    assert {Path(name).suffix for name in moved} <= {".json", ".csv"}


def test_files_of_others_stay(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    (old,) = folder.glob("patches/Sa/*")
    mine = [old / "mine.png", old.parent / "notes.txt", old.parent / "20240101" / "mine.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    run(folder, *CHANGES["another transform"](pairs))
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert [path.name for path in old.iterdir()] == ["mine.png"]


def test_complete_slides_that_are_not_published_are_no_data_set(tmp_path: Path, pairs: list[SlidePair]) -> None:
    with open_dataset_folder(tmp_path / "data", OPTIONS) as dataset:
        for pair in pairs:
            cut(dataset, pair)
    with pytest.raises(DatasetError, match="no paired patches in"):
        load_data(tmp_path / "data")


# fingerprints


def test_what_a_slide_is_cut_from(tmp_path: Path, pairs: list[SlidePair]) -> None:
    pair = pairs[0]
    (tmp_path / "transform.json").write_text("{}")
    (tmp_path / "marks.csv").write_text("")
    prints = [
        fingerprint_of(pair),
        fingerprint_of(dataclasses.replace(pair, he_mpp=0.3)),
        fingerprint_of(dataclasses.replace(pair, ihc_mpp=0.3)),
        fingerprint_of(dataclasses.replace(pair, transform=(1, 0, 0, 0, 1, 0))),
        fingerprint_of(dataclasses.replace(pair, transform=tmp_path)),
        fingerprint_of(dataclasses.replace(pair, he_landmarks=tmp_path / "marks.csv")),
    ]
    same = dataclasses.replace(pair, row=7, patient="Q", her2="3+", role="test")
    assert fingerprint_of(same) == prints[0]
    assert fingerprint_of(dataclasses.replace(pair, transform=tmp_path / "transform.json")) == prints[4]
    (tmp_path / "transform.json").write_text("{ }")
    prints.append(fingerprint_of(dataclasses.replace(pair, transform=tmp_path)))
    pair.ihc.write_bytes(b"another")
    prints.append(fingerprint_of(pair))
    prints.append(fingerprint_of(pair, {"icc": "srgb"}))
    prints.append(fingerprint_of(pair, {"tissue": "none"}))
    prints.append(fingerprint_of(dataclasses.replace(pair, tissue=tmp_path / "marks.csv")))
    assert len(set(prints)) == len(prints)
    assert fingerprint_of(pair, {}) == fingerprint_of(pair)
    pair.ihc.unlink()
    with pytest.raises(SlideNotFoundError, match=r"a_ihc.svs cannot be read"):
        fingerprint_of(pair)


def test_how_slides_are_read_counts_where_it_is_not_the_default() -> None:
    assert PairsOptions().reading == {}
    other = PairsOptions(icc="srgb", tissue="none", on_read_error="background")
    assert other.reading == {"tissue": "none", "icc": "srgb", "on_read_error": "background"}
    assert other.stated | other.reading == other.stated
    with pytest.raises(OptionError, match="--icc is keep or srgb, not 'rgb'"):
        PairsOptions(icc="rgb")  # type: ignore[arg-type]


# other people's folders


def check_refused(folder: Path, message: str, options: Mapping[str, Any] = OPTIONS) -> None:
    before = tree(folder) if folder.is_dir() else {}
    with pytest.raises(OutputError, match=message) as caught, open_dataset_folder(folder, options):
        pass
    assert "\n" not in str(caught.value)
    assert (tree(folder) if folder.is_dir() else {}) == before


@pytest.mark.parametrize("name", ["dataset.json", "pairs.csv", "HE/train/a.png", "notes.txt"])
def test_another_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    (tmp_path / "data" / name).write_text("{}")
    check_refused(tmp_path / "data", "is neither empty nor a dataset of this command")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_px": 16}, "contains a dataset made with patch_px 8; this run asks for 16; choose another folder"),
        ({"side_by_side": True}, "contains a dataset made with side_by_side null; this run asks for true"),
    ],
)
def test_other_options(tmp_path: Path, pairs: list[SlidePair], change: dict[str, Any], message: str) -> None:
    check_refused(run(tmp_path / "data", pairs), message, OPTIONS | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "store.json is damaged"),
        ("[]", "a dataset of an unknown format, not 'wsi2ihc pairs', version 3"),
        (
            '{"format": "wsi2ihc pairs", "version": 2, "options": {}}',
            "of 'wsi2ihc pairs', version 2, not 'wsi2ihc pairs', version 3",
        ),
        (
            '{"format": "wsi2ihc pairs", "version": 4, "options": {}}',
            "of 'wsi2ihc pairs', version 4, not 'wsi2ihc pairs', version 3",
        ),
    ],
)
def test_a_store_of_another_kind(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "store.json").write_text(content)
    check_refused(tmp_path, message)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    check_refused(tmp_path / "data", "is a file; name a folder for the dataset")


def test_options_survive_json(tmp_path: Path) -> None:
    for _ in range(2):
        with open_dataset_folder(tmp_path / "data", {"shares": (0.8, 0.1, 0.1)}):
            pass


def test_two_runs_keep_out_of_each_other_s_way(tmp_path: Path) -> None:
    with (
        open_dataset_folder(tmp_path / "data", OPTIONS),
        pytest.raises(OutputError, match="another run is writing the dataset"),
        open_dataset_folder(tmp_path / "data", OPTIONS),
    ):
        pass
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["store.json"]


def test_a_disk_that_is_full(tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with open_dataset_folder(tmp_path / "data", OPTIONS) as dataset:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full)
            with pytest.raises(OutputError, match=r"cannot write .*Sa_00000_he.png: No space left on device"):
                cut(dataset, pairs[0])
        slides = [(pair, cut(dataset, pair)) for pair in pairs]
        monkeypatch.setattr(dataset_writer, "_content", full)
        with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
            publish(dataset, slides, ROLES, STATEMENT)


@pytest.mark.parametrize("content", ["", "he\n", "slide\na\n", "he,ihc\n../x,y\n", "\0"])
def test_a_damaged_index_is_written_again(tmp_path: Path, pairs: list[SlidePair], content: str) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = tree(folder)
    (folder / "pairs.csv").write_text(content)
    assert tree(run(folder, pairs)) == complete


def test_no_patch_at_all(tmp_path: Path) -> None:
    folder = run(tmp_path / "data", [])
    assert rows(folder) == []
    assert json.loads((folder / "dataset.json").read_text())["counts"] == {}
