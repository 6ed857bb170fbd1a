"""Fuzz the program: ``python tests/fuzz/fuzz.py --minutes 120 --out FOLDER``.

Files of the corpus are mutated and given to the commands that read them. An input goes wrong if the process ends by a
signal, computes for more than 20 s, takes more than 2 GB, ends in an exception that was not raised on purpose, prints a
traceback, a warning of Python's or a control character, or writes outside its folder. Inputs that lead to messages not
seen before are mutated further. FOLDER keeps these, the findings (made smaller where that is quick) and the counts, so
that a run that was ended can be continued by the same command.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_mutation import mutated
from fuzz_pool import Outcome, Pool
from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
_ROUND = 25
"""Inputs of one target before the next one's turn."""

_LARGEST_KEPT_BYTES = 200_000
_MOST_KEPT = 400
_SMALLER_S = 30.0


@dataclass(slots=True)
class Count:
    """What was done for a target.

    inputs:    that were run
    seconds:   of the clock
    slowest_s: processor time of the slowest input without a finding
    peak_mb:   of memory, over all inputs
    findings:  how often each finding was seen
    """

    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_mb: int = 0
    findings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """An input: its content, and the suffixes by which the program knows its kind."""

    content: bytes
    suffix: str


class Fuzzer:
    """A run over some targets.

    Parameters
    ----------
    corpus
        Holds a folder of inputs per target.
    out
        Where counts, findings and inputs to be mutated further are kept.
    targets
        Names.
    seed
        Of the random numbers.
    """

    def __init__(self, corpus: Path, out: Path, targets: Sequence[str], seed: int) -> None:
        self.out, self.seed, self.targets = out, seed, tuple(targets)
        self.pool = Pool(out / "work")
        self.samples = {name: _samples(corpus / name) for name in targets}
        self.kept = {name: _samples(out / "kept" / name) for name in targets}
        self.signatures: dict[str, set[str]] = {name: set() for name in targets}
        self.counts = {name: Count() for name in targets}
        if (out / "counts.json").exists():
            for name, facts in json.loads((out / "counts.json").read_text(encoding="utf-8")).items():
                self.counts[name] = Count(**facts)

    def run(self, seconds: float) -> None:
        """Run the targets in turn, for the same time each."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = min(self.targets, key=lambda name: self.counts[name].seconds)
            turn = time.monotonic() + 60.0
            for _ in range(_ROUND):
                if time.monotonic() > min(end, turn):
                    break
                self.step(name)
            self.save()
        self.pool.close()

    def step(self, name: str) -> None:
        """Make and run one input."""
        count = self.counts[name]
        started = time.monotonic()
        sample = self.input(name, count.inputs)
        outcome = self.check(name, sample)
        count.inputs += 1
        count.peak_mb = max(count.peak_mb, outcome.peak_mb)
        if outcome.findings:
            self.note(name, sample, outcome)
        else:
            count.slowest_s = max(count.slowest_s, outcome.seconds)
            self.keep(name, sample, outcome.signature)
        count.seconds += time.monotonic() - started

    def input(self, name: str, number: int) -> Sample:
        """The input of this number; the corpus itself comes first."""
        samples = self.samples[name]
        if number < len(samples):
            return samples[number]
        rng = random.Random(f"{self.seed}/{name}/{number}")
        kept = self.kept[name]
        sample = rng.choice(kept) if kept and rng.random() < 0.5 else rng.choice(samples)
        target = TARGETS[name]
        others = [one.content for one in samples]
        return Sample(mutated(rng, sample.content, others, target.words, target.kinds), sample.suffix)

    def check(self, name: str, sample: Sample) -> Outcome:
        """Run an input."""
        path = self.out / "work" / f"sample{sample.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
        return self.pool.run(name, path)

    def keep(self, name: str, sample: Sample, signature: str) -> None:
        """Mutate an input further if it led where none was before."""
        if signature in self.signatures[name] or len(sample.content) > _LARGEST_KEPT_BYTES:
            return
        self.signatures[name].add(signature)
        if len(self.kept[name]) < _MOST_KEPT:
            self.kept[name].append(sample)
            _write(self.out / "kept" / name / f"{len(self.kept[name]):04d}{sample.suffix}", sample.content)

    def note(self, name: str, sample: Sample, outcome: Outcome) -> None:
        """Count the findings of an input, and keep the input of those that are new."""
        count = self.counts[name]
        for finding in outcome.findings:
            key = finding_key(finding)
            count.findings[key] = count.findings.get(key, 0) + 1
            if count.findings[key] > 1:
                continue
            folder = self.out / "findings" / f"{name}-{len(count.findings):02d}-{finding.split(':')[0]}"
            _write(folder / f"input{sample.suffix}", sample.content)
            text = f"{name}\n{finding}\n\npeak {outcome.peak_mb} MB, {outcome.seconds:.1f} s\n{outcome.text}\n"
            (folder / "finding.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
            if not finding.startswith(("hang", "memory")):
                _write(folder / f"smaller{sample.suffix}", self.smaller(name, sample, key).content)

    def smaller(self, name: str, sample: Sample, key: str) -> Sample:
        """Take pieces out as long as the finding stays."""
        end = time.monotonic() + _SMALLER_S
        step = max(1, len(sample.content) // 2)
        while step >= 1 and time.monotonic() < end:
            start = 0
            while start < len(sample.content) and time.monotonic() < end:
                shorter = Sample(sample.content[:start] + sample.content[start + step :], sample.suffix)
                if any(finding_key(finding) == key for finding in self.check(name, shorter).findings):
                    sample = shorter
                else:
                    start += step
            step //= 2
        return sample

    def save(self) -> None:
        """Write the counts."""
        text = json.dumps({name: asdict(count) for name, count in self.counts.items()}, indent=1)
        _write(self.out / "counts.json", text.encode())


def finding_key(finding: str) -> str:
    """What is alike of findings that have one cause."""
    return re.sub(r"/\S+|\d+", "#", finding)[:120]


def table(counts: dict[str, Count]) -> str:
    """A line for each target."""
    lines = [f"{'target':14} {'inputs':>7} {'minutes':>8} {'slowest s':>10} {'peak MB':>8}  findings"]
    for name, count in counts.items():
        found = f"{len(count.findings)} kinds, {sum(count.findings.values())} inputs" if count.findings else "none"
        lines.append(
            f"{name:14} {count.inputs:7} {count.seconds / 60:8.1f} {count.slowest_s:10.1f} {count.peak_mb:8}  {found}"
        )
    return "\n".join(lines)


def _samples(folder: Path) -> list[Sample]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Sample(path.read_bytes(), "".join(path.suffixes[-2:])) for path in files]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def main() -> None:
    """Fuzz for the given time, or run one file again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="may be repeated (default: all)")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--out", type=Path, default=Path("fuzz-results"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="run this file only, with one --target, and print the outcome")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    if options.again is not None:
        fuzzer = Fuzzer(options.corpus, options.out.resolve(), targets[:1], options.seed)
        outcome = fuzzer.check(targets[0], Sample(options.again.read_bytes(), "".join(options.again.suffixes[-2:])))
        fuzzer.pool.close()
        sys.stdout.write(
            f"{outcome.text}\n{outcome.seconds:.1f} s, {outcome.peak_mb} MB\n" + "\n".join(outcome.findings) + "\n"
        )
        sys.exit(bool(outcome.findings))
    fuzzer = Fuzzer(options.corpus, options.out.resolve(), targets, options.seed)
    try:
        fuzzer.run(60 * options.minutes)
    finally:
        fuzzer.save()
        shutil.rmtree(fuzzer.out / "work", ignore_errors=True)
    sys.stdout.write(table(fuzzer.counts) + "\n")
    sys.exit(any(count.findings for count in fuzzer.counts.values()))


if __name__ == "__main__":
    main()
