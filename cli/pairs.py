"""``wsi2ihc pairs``: make a paired dataset from H&E and IHC slides."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.console import print_err, print_json, print_out
from wsi2ihc.cli.main import EXIT_SOME_FAILED
from wsi2ihc.cli.options import build_options, json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar, duration
from wsi2ihc.text import pairs_of_slides, pluralize
from wsi2ihc.training.pairs.options import PairsOptions

if TYPE_CHECKING:
    from wsi2ihc.training.pairs.report import BuildReport, FailedPair, Preview, SlideTally
    from wsi2ihc.training.pairs.verify_dataset import CheckReport


@click.command("pairs")
@click.argument("manifest", type=click.Path(path_type=Path), required=False)
@click.argument("dataset", type=click.Path(path_type=Path), required=False)
@click.option("--check", type=click.Path(path_type=Path), metavar="DATASET",
              help="Verify a dataset instead: pairs, sizes, splits by patient, checksums.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show splits and problems of the manifest; write nothing.")
@options_of(PairsOptions)
@json_option
@verbosity_options
def command(
    manifest: Path | None, dataset: Path | None, check: Path | None, dry_run: bool, json: bool, verbose: int,
    quiet: bool, **choices: Any,
) -> int:  # fmt: skip
    """Register the IHC slides of a MANIFEST onto their H&E slides, and extract patches into DATASET.

    MANIFEST is a CSV file with the columns patient_id, slide_id, he_path and ihc_path; and optionally her2, he_mpp,
    ihc_mpp, he_series, he_page, ihc_series, ihc_page, split, tissue (auto, none or a mask file), landmarks
    ("he.csv;ihc.csv") and transform (identity, six numbers, or a saved transform; without one the slides are
    registered). DATASET is the input of `wsi2ihc train`. Run the same command again to resume after an interruption or
    to retry failed pairs.

    Exit code 3: some pairs failed, the others are in DATASET; 1: all failed.
    """
    set_up_logging(verbose, quiet)
    if check is not None:
        if manifest is not None:
            raise click.UsageError("--check takes only the folder of a dataset")
        return _check(check, json=json, quiet=quiet)
    if manifest is None or dataset is None:
        raise click.UsageError("name a manifest and the folder of the dataset, or a dataset to --check")
    options = build_options(PairsOptions, choices)
    if dry_run:
        return _preview(manifest, dataset, options, json=json, quiet=quiet)
    return _build(manifest, dataset, options, json=json, quiet=quiet)


def _check(dataset: Path, *, json: bool, quiet: bool) -> int:
    from wsi2ihc.training.pairs.verify_dataset import check_dataset

    bar = ProgressBar(quiet)
    try:
        report = check_dataset(dataset, bar)
    finally:
        bar.close()
    if json:
        print_json({"patches": report.patches, "problems": report.problems, "advice": report.advice})
    else:
        _report_check(dataset, report, quiet=quiet)
    return 1 if report.problems else 0


def _report_check(dataset: Path, report: CheckReport, *, quiet: bool) -> None:
    for problem in report.shown():
        print_err(f"Error: {problem}")
    for advice in report.advice if not quiet else ():
        print_err(f"To fix it: {advice}")
    if not quiet and not report.problems:
        print_out(f"{dataset}: {pluralize(report.patches, 'pair')}, no problems")


def _preview(manifest: Path, dataset: Path, options: PairsOptions, *, json: bool, quiet: bool) -> int:
    from wsi2ihc.training.pairs.build import preview_pairs

    bar = ProgressBar(quiet)
    try:
        preview = preview_pairs(manifest, dataset, options, bar)
    finally:
        bar.close()
    if json:
        print_json(preview.to_json())
    elif not quiet:
        print_out(*_describe(preview))
    return _report_failures(preview.failed, some=bool(preview.slides))


def _build(manifest: Path, dataset: Path, options: PairsOptions, *, json: bool, quiet: bool) -> int:
    from wsi2ihc.training.pairs.build import build_pairs

    bar = ProgressBar(quiet)
    try:
        report = build_pairs(manifest, dataset, options, bar)
    except (KeyboardInterrupt, SystemExit) as error:
        error.add_note("Finished pairs are kept: run the same command again to resume.")
        raise
    finally:
        bar.close()
    if json:
        print_json(report.to_json())
    elif not quiet:
        print_out(*summary(report, dataset))
    return _report_failures(report.failed, some=bool(report.slides))


def _report_failures(failed: Sequence[FailedPair], *, some: bool) -> int:
    """Print the failed rows and return the exit code; ``some``: whether others did not fail."""
    for failure in failed:
        print_err(f"Error: {failure}")
    return (EXIT_SOME_FAILED if some else 1) if failed else 0


def _describe(preview: Preview) -> list[str]:
    """Describe the splits of a dry run."""
    lines = [f"{pairs_of_slides(len(preview.slides))} can be used"]
    for role, own in _by_role(preview.slides).items():
        patients = len({slide.patient for slide in own})
        done = sum(not slide.is_new for slide in own)
        lines.append(
            f"  {role}: {len(own)} of {pluralize(patients, 'patient')}{_levels(own)}{f', {done} done' if done else ''}"
        )
        lines.append(f"    {', '.join(slide.slide for slide in own)}")
    return [*lines, *(f"  note: {warning}" for warning in preview.warnings)]


def _by_role(slides: Sequence[SlideTally]) -> dict[str, list[SlideTally]]:
    return {
        role: own
        for role in ("train", "validation", "test")
        if (own := [slide for slide in slides if slide.role == role])
    }


def _levels(slides: Sequence[SlideTally]) -> str:
    levels = sorted({slide.her2 for slide in slides if slide.her2 is not None})
    listed = ", ".join(f"{level}: {sum(slide.her2 == level for slide in slides)}" for level in levels)
    return f" (HER2 {listed})" if listed else ""


def summary(report: BuildReport, dataset: Path) -> list[str]:
    """Summarize the dataset, rejected patches and the next step."""
    notes = [f"  note: {warning}" for warning in report.warnings]
    if not report.slides:
        return [f"{dataset}: no slide pair can be used", *notes]
    if report.unchanged:
        same = f"{dataset}: already complete, {pluralize(report.kept, 'pair')}; nothing was done"
        return [same, *notes]
    new = [slide for slide in report.slides if slide.is_new]
    lines = [
        f"{dataset}: {pluralize(report.kept, 'pair')} of patches from {pairs_of_slides(len(report.slides))}, "
        f"{len(new)} of them new, in {duration(report.seconds)}"
    ]
    for split, counts in report.counts.items():
        levels = ", ".join(f"{level}: {number:,}" for level, number in counts.get("her2", {}).items())
        amounts = ", ".join(pluralize(counts[f"{noun}s"], noun) for noun in ("pair", "slide", "patient"))
        lines.append(f"  {split:8} {amounts}" + (f" (HER2 {levels})" if levels else ""))
    lines += [*_rejection_table(report), *notes]
    if report.failed:
        lines.append(f"  {pairs_of_slides(len(report.failed))} failed; fix them and run the same command again")
    return [*lines, f"  {_next_step(report, dataset)}"]


def _next_step(report: BuildReport, dataset: Path) -> str:
    """Return the next command, or what the dataset lacks for training."""
    lacking = [what for split, what in (("train", "training"), ("val", "validation")) if split not in report.counts]
    if not lacking:
        return f"next: wsi2ihc train {shlex.quote(str(dataset))} --out RUN"
    return (
        f"not ready for wsi2ihc train: no patches for {' and '.join(lacking)}; add slides of more patients, or give "
        "patients a split in the manifest"
    )


def _rejection_table(report: BuildReport) -> list[str]:
    """Return a table of rejected patches, one row per reason, one column per HER2 level."""
    reasons, levels = report.rejected.get("reasons", {}), report.rejected.get("her2", {})
    if not reasons:
        return []
    known = sorted(level for level in levels if level)
    head = f"  {'rejected':14}{'patches':>9}" + "".join(f"{f'HER2 {level}':>10}" for level in known)
    return [
        head,
        *(
            f"    {reason:12}{number:9,}" + "".join(f"{levels[level].get(reason, 0):10,}" for level in known)
            for reason, number in reasons.items()
        ),
    ]
