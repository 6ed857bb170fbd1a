"""The synthetic pair as files: two slides, and landmarks that are where both show the same."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wsi2ihc.concurrency import Progress
from wsi2ihc.demo.ihc_pair import STUDY_NAMES, GroundTruthWarp, make_demo_pair, make_demo_study
from wsi2ihc.errors import OptionError, OutputError
from wsi2ihc.registration.landmarks import landmark_errors, match_landmarks, read_landmarks
from wsi2ihc.registration.transform import Transform
from wsi2ihc.registration.warped_region import read_warped
from wsi2ihc.slide import open_slide
from wsi2ihc.training.pairs.pair_manifest import read_manifest


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GroundTruthWarp]:
    folder = tmp_path_factory.mktemp("pair")
    return folder, make_demo_pair(folder, size=(1500, 1100), seed=2)


def test_both_slides_have_a_resolution(pair: tuple[Path, GroundTruthWarp]) -> None:
    folder, _ = pair
    assert sorted(path.name for path in folder.iterdir()) == ["he.csv", "he.tiff", "ihc.csv", "ihc.tiff"]
    with open_slide(folder / "he.tiff") as he, open_slide(folder / "ihc.tiff") as ihc:
        assert (he.info.size.width, he.info.size.height) == (1500, 1100)
        assert ihc.info.size.width > 1500
        for slide in (he, ihc):
            assert slide.info.mpp == (0.5, 0.5)
            assert len(slide.info.levels) == 3


def test_landmarks_agree_with_the_ground_truth(pair: tuple[Path, GroundTruthWarp]) -> None:
    folder, truth = pair
    fixed, moving = (read_landmarks(folder / name, (0.5, 0.5)) for name in ("he.csv", "ihc.csv"))
    matched = match_landmarks(fixed, moving)
    assert len(matched.ids) == 60
    assert (matched.unmatched_fixed, matched.unmatched_moving) == (0, 0)
    # written to a thousandth of a px
    assert np.abs(truth.to_moving(matched.fixed_um) - matched.moving_um).max() < 2e-3
    errors = landmark_errors(Transform(truth.matrix), matched, 1000)
    assert 2 < errors.max_um < 26


def test_slides_match_at_the_landmarks(pair: tuple[Path, GroundTruthWarp]) -> None:
    folder, truth = pair
    fixed, _ = (read_landmarks(folder / name, (0.5, 0.5)) for name in ("he.csv", "ihc.csv"))
    steps = (np.arange(64) - 31.5) * 0.5
    alike = []
    with open_slide(folder / "he.tiff") as he, open_slide(folder / "ihc.tiff") as ihc:
        for x, y in fixed.points_um[:20]:
            # the affine map that the truth is like here
            around = np.array([[x, y], [x + 1, y], [x, y + 1]])
            here = truth.to_moving(around)
            linear = np.column_stack([here[1] - here[0], here[2] - here[0]])
            near = Transform(np.column_stack([linear, here[0] - linear @ around[0]]))
            one = read_warped(he, Transform(np.eye(2, 3)), 0.5, x + steps, y + steps).pixels[..., 0]
            other = read_warped(ihc, near, 0.5, x + steps, y + steps).pixels[..., 0]
            found = cv2.matchTemplate(other.astype(np.float32), one[16:48, 16:48].astype(np.float32), 5)
            alike.append(np.unravel_index(int(found.argmax()), found.shape))
    # red shows hematoxylin in both; most patches fit best where the truth says, to a px
    offsets = np.abs(np.array(alike) - 16).max(axis=1)
    assert (offsets <= 1).mean() > 0.7


def test_progress_is_reported_and_small_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least 256 px"):
        make_demo_pair(tmp_path, size=(100, 1000))
    with pytest.raises(OutputError, match="missing"):
        make_demo_pair(tmp_path / "missing", size=(256, 256))
    calls: list[Progress] = []
    make_demo_pair(tmp_path, size=(256, 300), on_progress=calls.append)
    assert [(call.done, call.total) for call in calls] == [(1, 2), (2, 2)]


def test_a_study_comes_with_its_manifest(tmp_path: Path) -> None:
    calls: list[Progress] = []
    make_demo_study(tmp_path, sizes=((400, 300), (300, 256)), on_progress=calls.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(STUDY_NAMES)
    assert [(call.done, call.total) for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    read = read_manifest(tmp_path / "manifest.csv")
    assert (read.problems, read.ignored) == ((), ())
    assert [(pair.patient, pair.role, pair.he.name) for pair in read.rows] == [
        ("P1", "train", "he.tiff"), ("P2", "validation", "he2.tiff"),
    ]  # fmt: skip
    assert read.rows[0].ihc_landmarks == tmp_path / "ihc.csv"
