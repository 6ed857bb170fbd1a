"""The short mode of the fuzzer: some inputs of every kind, always the same; `fuzz` runs for as long as wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import CORPUS, Fuzzer, finding_key
from fuzz_pool import Pool
from fuzz_targets import SHORT, TARGETS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory and time are watched through /proc"),
    pytest.mark.timeout(300),
]

MUTANTS = 1


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHORT, "1")
        fuzzer = Fuzzer(CORPUS, tmp_path_factory.mktemp("fuzz"), list(TARGETS), seed=0)
        yield fuzzer
        fuzzer.pool.close()


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_end_in_one_clear_line(fuzzer: Fuzzer, target: str) -> None:
    samples = len(fuzzer.samples[target])
    assert samples
    for number in [0, *range(samples, samples + MUTANTS)]:
        outcome = fuzzer.check(target, fuzzer.input(target, number))
        assert not outcome.findings, f"input {number}: {outcome.text}"


def _regressions() -> list[Path]:
    return sorted(path for path in CORPUS.rglob("was-*") if path.is_file())


@pytest.mark.parametrize("path", _regressions(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_input_that_went_wrong_once_stays_right(fuzzer: Fuzzer, path: Path) -> None:
    outcome = fuzzer.pool.run(path.parent.name, path)
    assert not outcome.findings, outcome.text


def test_the_same_number_gives_the_same_input(tmp_path: Path) -> None:
    first, second = (Fuzzer(CORPUS, tmp_path, ["tiff"], seed=1) for _ in range(2))
    assert first.input("tiff", 40) == second.input("tiff", 40) != first.input("tiff", 41)


def test_findings_of_one_cause_have_one_key() -> None:
    assert finding_key("output: /a/b is 12 px") == finding_key("output: /c is 345 px")


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000


def _pool_that_runs(folder: Path, code: str) -> Pool:
    """A pool whose process does something bad when it is asked."""
    script = folder / "bad.py"
    script.write_text(
        f"import os, sys, time\nsys.stdin.readline()\nprint('{{}}', flush=True)\n{code}\n", encoding="utf-8"
    )
    return Pool(folder / "work", worker=script)


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("os.kill(os.getpid(), 11)", "crash: SIGSEGV"),
        ("x = b'a' * (200 << 20)\ntime.sleep(60)", "memory: "),
        ("while True: pass", "hang: "),
        ("time.sleep(60)", "hang: "),
    ],
)
def test_a_process_that_goes_wrong_is_ended_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, finding: str
) -> None:
    for name, value in {"HANG_S": 0.3, "STILL_S": 0.6, "LARGEST_MB": 100}.items():
        monkeypatch.setattr(f"fuzz_pool.{name}", value)
    pool = _pool_that_runs(tmp_path, code)
    outcome = pool.run("tiff", tmp_path)
    assert outcome.findings[0].startswith(finding)
    assert pool.run("tiff", tmp_path).findings, "a new process takes the next input"
    pool.close()
