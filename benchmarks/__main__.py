"""Measure everything the project promises: ``python -m benchmarks [NAME …]``.

Writes JSON and a table. Needs a real slide (``--data``, by default the optional development data) and some 5 GB in the
work folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import time
from pathlib import Path

from benchmarks.harness import Context, Row, machine

MEASUREMENTS = {
    "exactness": "tiled against whole, seams and their positive control",
    "generator_cpu": "the network on this CPU: speed, half precision in gray levels, exactness, memory",
    "end_to_end": "the pipeline around the network",
    "stub_rates": "how fast a generator the pipeline can feed",
    "against_libvips": "identity through the whole path against libvips",
    "memory": "peak memory on a slide of 100,000² px",
    "redundancy": "work per kept pixel",
    "registration": "registered slides against landmarks, against known truth, and against mismatched slides",
    "pairs": "two slides of 20,000² px to a data set: time and memory",
    "batch": "what a batch takes beside the translations themselves",
    "evaluation": "the metrics of an evaluation: time and memory",
    "training_step": "a training step against the same written plainly",
    "training_study": "the three recipes under one budget, λ, and another task (some hours)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--data", type=Path, default=_default_data())
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/results.json"))
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller slides; for trying the code")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MEASUREMENTS)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    context = Context(arguments.data, arguments.work.resolve(), arguments.quick)
    results = {}
    for name in arguments.names or MEASUREMENTS:
        started = time.perf_counter()
        print(f"\n{name}: {MEASUREMENTS[name]}", flush=True)
        rows = importlib.import_module(f"benchmarks.{name}").measure(context)
        for row in rows:
            print(_line(row), flush=True)
        results[name] = {"seconds": time.perf_counter() - started, "rows": [dataclasses.asdict(row) for row in rows]}
    arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=2, default=str) + "\n")
    print(f"\n{arguments.json}")


def _default_data() -> Path:
    return Path(os.environ.get("WSI2IHC_DEV_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _line(row: Row) -> str:
    verdict = {True: "met", False: "NOT MET", None: "reported"}[row.met]
    return f"| {row.what} | {row.bar} | {row.measured} | {verdict} |"


if __name__ == "__main__":
    main()
