"""A data set that was killed anywhere and run again is the one that was never killed, byte for byte."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2ihc.errors import OptionError, OutputError, SlideNotFoundError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.data import Role, load_data, read_pair
from wsi2ihc.training.pairs import dataset_writer
from wsi2ihc.training.pairs.dataset_writer import PairsStore, encode_patch, move_patches, open_dataset_folder
from wsi2ihc.training.pairs.options import PairsOptions
from wsi2ihc.training.pairs.pair_manifest import SlidePair
from wsi2ihc.training.pairs.records import METRICS, SlideRecord, Statement, fingerprint_of, read_record

PX = 8
OPTIONS: dict[str, Any] = {"patch_px": PX, "mpp": 0.46, "limits": {"min_tissue": 0.5, "max_pen": 0.1}}
STATEMENT = Statement(0.46, PX, "HER2", "CC0", (("S9", "it could not be read"),), {"seed": 3}, "ours")
ROLES: dict[str, Role] = {"Sa": "train", "Sb": "validation", "Sc": "test", "Sd": "train"}
AT = ((0, 0), (PX, 0), (0, PX), (PX, PX))


class KilledError(BaseException):
    """Stands for ``kill -9``: nothing catches it on purpose."""


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


def cut(open_to: PairsStore, pair: SlidePair, kept: Sequence[int] = (0, 1, 3)) -> SlideRecord:
    """What a runner does of one slide: look whether it is done, else cut it; one patch of four is left out."""
    fingerprint = fingerprint_of(pair)
    if record := open_to.completed(pair.slide, fingerprint):
        open_to.remove_attempts(pair.slide)
        return record
    writer = open_to.begin(pair.slide)
    for number, at in enumerate(AT):
        metrics: Mapping[str, float | None] = dict.fromkeys(METRICS, number / 3) | {"residual_um": None}
        images = [image(pair.slide, at, stain) for stain in (0, 1)]
        encoded = encode_patch(images[0], images[1], side_by_side=open_to.side_by_side) if number in kept else None
        reason = "" if encoded else "tissue"
        writer.add(at, (at[0] * 0.455, at[1] * 0.455), metrics, rejected=reason, encoded=encoded)
    return writer.complete(fingerprint, 0.455, {"angle_deg": 3.5})


def run(
    folder: Path,
    pairs: Sequence[SlidePair],
    roles: Mapping[str, Role] = ROLES,
    options: Mapping[str, Any] = OPTIONS,
    kept: Sequence[int] = (0, 1, 3),
) -> Path:
    with open_dataset_folder(folder, options) as open_to:
        slides = [(pair, cut(open_to, pair, kept)) for pair in pairs]
        move_patches(open_to, slides, roles, STATEMENT)
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


def test_bci_layout(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    names = [
        *(f"train/{number:05}_train_2+.png" for number in range(3)),
        *(f"val/{number:05}_val_0.png" for number in range(3, 6)),
        *(f"test/{number:05}_test.png" for number in range(6, 9)),
        *(f"train/{number:05}_train_3+.png" for number in range(9, 12)),
    ]
    assert [row["he"] for row in rows(folder)] == [f"HE/{name}" for name in names]
    assert [row["ihc"] for row in rows(folder)] == [f"IHC/{name}" for name in names]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert found == {f"{stain}/{name}" for stain in ("HE", "IHC") for name in names}
    assert not list(folder.glob("slides/*/patches"))
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
    data = load_data(run(tmp_path / "data", pairs, options=OPTIONS | {"side_by_side": side_by_side}))
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
    folder = run(tmp_path / "data", pairs, options=OPTIONS | {"side_by_side": True})
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert (len(found), found[0]) == (12, "test/00006_test.png")
    assert {row["half"] for row in rows(folder)} == {"left"}
    assert all(row["he"] == row["ihc"] and row["sha256_he"] == row["sha256_ihc"] for row in rows(folder))


def test_figures_that_are_no_numbers(tmp_path: Path, pairs: list[SlidePair]) -> None:
    with open_dataset_folder(tmp_path / "data", OPTIONS) as open_to:
        writer = open_to.begin("Sa")
        writer.add((0, 0), (0.0, 0.0), {"pen": float("nan"), "valid": np.float32(0.5)}, rejected="pen")
        written = writer.complete("x", 0.46)
        assert written.patches[0].metrics == {"pen": None, "valid": 0.5}
        assert read_record(open_to.slide_folder("Sa")) == written
        with pytest.raises(ValueError, match="either rejected or has files"):
            writer.add((0, 0), (0.0, 0.0), {})


# again, and with changes


def test_a_second_run_changes_nothing(tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "data", pairs)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(PairsStore, "begin", lambda *_: pytest.fail("a slide is cut again"))
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
    """A dataset without stored slides that are not in it, and without unfinished slides."""
    slides = {row["slide"] for row in rows(folder)}
    return {
        name: content
        for name, content in tree(folder).items()
        if (not name.startswith("slides/") or name.split("/")[1] in slides) and "/attempt" not in name
    }


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_manifest_gives_what_a_new_run_gives(tmp_path: Path, pairs: list[SlidePair], change: str) -> None:
    folder = run(tmp_path / "data", pairs)
    changed, roles = CHANGES[change](pairs)
    assert comparable(run(folder, changed, roles)) == comparable(run(tmp_path / "new", changed, roles))
    assert comparable(run(folder, pairs)) == comparable(run(tmp_path / "old", pairs))


def test_a_mended_row_joins_the_others(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", [pairs[0], pairs[2]])
    assert tree(run(folder, pairs)) == tree(run(tmp_path / "new", pairs))


@pytest.mark.parametrize("gone", ["HE/train/00001_train_2+.png", "slides/Sa/record.json"])
def test_what_is_gone_is_cut_again(tmp_path: Path, pairs: list[SlidePair], gone: str) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = tree(folder)
    (folder / gone).unlink()
    assert tree(run(folder, pairs)) == complete


def test_a_damaged_record_is_cut_again(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    complete = tree(folder)
    for damage in ("{", "[]", '{"patches": 1}', '{"slide": "Sa", "patches": [{}]}'):
        (folder / "slides" / "Sa" / "record.json").write_text(damage)
        assert tree(run(folder, pairs)) == complete


def test_a_patch_that_goes_while_it_is_placed(tmp_path: Path, pairs: list[SlidePair]) -> None:
    with open_dataset_folder(tmp_path / "data", OPTIONS) as open_to:
        slides = [(pair, cut(open_to, pair)) for pair in pairs]
        next(tmp_path.glob("data/slides/Sb/patches/*")).unlink()
        with pytest.raises(OutputError, match=r"is missing, also at .*; run again"):
            move_patches(open_to, slides, ROLES, STATEMENT)
    assert tree(run(tmp_path / "data", pairs)) == tree(run(tmp_path / "new", pairs))


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


@pytest.mark.parametrize("change", CHANGES)
def test_killed_anywhere_on_the_way_to_a_changed_data_set(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pairs = pairs[:2]
    changed, roles = CHANGES[change](pairs)
    was, wanted = (
        comparable(run(tmp_path / "was", pairs, kept=FEW)),
        comparable(run(tmp_path / "wanted", changed, roles, kept=FEW)),
    )
    folder = run(tmp_path / "first", pairs, kept=FEW)

    def rerun() -> None:
        run(folder, changed, roles, kept=FEW)

    for at in kill_everywhere(monkeypatch, rerun):
        if (folder / "dataset.json").exists():
            seen = {name: content for name, content in comparable(folder).items() if Path(name).name[0] != "."}
            assert seen in (was, wanted), f"said to be complete, but is not, when killed at {at}"
        if at % 2:  # back again: a third way between the two
            assert comparable(run(folder, pairs, kept=FEW)) == was, f"killed at {at}"
        assert comparable(run(folder, changed, roles, kept=FEW)) == wanted, f"killed at {at}"
        folder = run(tmp_path / str(at), pairs, kept=FEW)


def test_killed_again_and_again_in_one_folder(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    for _ in kill_everywhere(monkeypatch, lambda: run(folder, pairs)):
        pass
    assert tree(folder) == tree(run(tmp_path / "whole", pairs))


def test_training_refuses_what_is_not_complete(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Path] = []
    replace = Path.replace

    def third_fails(path: Path, target: Path) -> Path:
        if path.parent.name == "patches":
            moved.append(path)
            if len(moved) > 3:
                raise KilledError
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", third_fails)
    with pytest.raises(KilledError):
        run(tmp_path / "data", pairs)
    with pytest.raises(ValueError, match=r"names .*, which does not exist \(nor are 20 more\)"):
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
    check_refused(tmp_path / "data", "is not empty and not a dataset of this command")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_px": 16}, "contains a dataset with patch_px 8, not 16; choose another folder"),
        ({"limits": {"min_tissue": 0.5, "max_pen": 1}}, r"contains a dataset with limits.max_pen 0.1, not 1; choose"),
        ({"side_by_side": True}, "contains a dataset with side_by_side null, not true"),
    ],
)
def test_other_options(tmp_path: Path, pairs: list[SlidePair], change: dict[str, Any], message: str) -> None:
    check_refused(run(tmp_path / "data", pairs), message, OPTIONS | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "store.json is damaged"),
        ("[]", "a different kind or version"),
        ('{"format": "wsi2ihc pairs", "version": 3, "options": {}}', "a different kind or version"),
    ],
)
def test_a_store_of_another_kind(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "store.json").write_text(content)
    check_refused(tmp_path, message)


def test_damaged_places(tmp_path: Path, pairs: list[SlidePair]) -> None:
    folder = run(tmp_path / "data", pairs)
    (folder / "places.json").write_text("{")
    check_refused(folder, "places.json cannot be read")


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

    with open_dataset_folder(tmp_path / "data", OPTIONS) as open_to:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full)
            with pytest.raises(OutputError, match=r"cannot write .*0_0_he.png: No space left on device"):
                cut(open_to, pairs[0])
        slides = [(pair, cut(open_to, pair)) for pair in pairs]
        monkeypatch.setattr(dataset_writer, "_distribute", full)
        with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
            move_patches(open_to, slides, ROLES, STATEMENT)


def test_numbers_grow_where_five_digits_are_too_few(
    tmp_path: Path, pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_writer, "_DIGITS", 1)
    assert rows(run(tmp_path / "data", pairs))[0]["he"] == "HE/train/00_train_2+.png"


def test_no_patch_at_all(tmp_path: Path) -> None:
    folder = run(tmp_path / "data", [])
    assert rows(folder) == []
    assert json.loads((folder / "dataset.json").read_text())["counts"] == {}
