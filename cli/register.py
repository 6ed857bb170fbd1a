"""``wsi2ihc register``: register an IHC slide onto an H&E slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.console import Line, print_err, print_json, print_out
from wsi2ihc.cli.options import POSITIVE, image_options, json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar
from wsi2ihc.errors import RegistrationError
from wsi2ihc.registration.register import RegistrationOptions, numbered
from wsi2ihc.slide import open_slide
from wsi2ihc.text import pluralize

if TYPE_CHECKING:
    from wsi2ihc.registration.landmarks import LandmarkErrors, MatchedLandmarks
    from wsi2ihc.registration.report import RegistrationReport


@click.command("register")
@click.argument("he")
@click.argument("ihc")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--mpp", type=POSITIVE,
              help="Resolution of the H&E slide in µm/px, if it is missing or wrong.")  # fmt: skip
@click.option("--moving-mpp", type=POSITIVE, help="The same for the IHC slide.")  # fmt: skip
@image_options
@click.option("--moving-series", type=click.IntRange(0), help="--series for the IHC slide.")
@click.option("--moving-page", type=click.IntRange(0), help="--page for the IHC slide.")
@click.option("--landmarks", nargs=2, type=click.Path(path_type=Path), default=None, metavar="HE.csv IHC.csv",
              help="Landmarks on both slides in level-0 px (id, X, Y), to measure the errors.")  # fmt: skip
@options_of(RegistrationOptions)
@click.option("--overwrite", is_flag=True, help="Replace a complete registration in OUT.")
@json_option
@verbosity_options
def command(
    he: str, ihc: str, out: Path, mpp: float | None, moving_mpp: float | None, series: int | None, page: int | None,
    moving_series: int | None, moving_page: int | None, landmarks: tuple[Path, Path] | None, overwrite: bool,
    json: bool, verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Register the slide IHC onto the slide HE, and write metrics, figures and the transform to the folder OUT.

    A registration that cannot be trusted is reported as failed (exit code 1), without a transform; a complete one in
    OUT is then kept.
    """
    from wsi2ihc.registration.landmarks import read_landmark_pair
    from wsi2ihc.registration.register import register
    from wsi2ihc.registration.report import is_complete, report_of, reserved, write_registration
    from wsi2ihc.registration.transform import frame_of

    set_up_logging(verbose, quiet)
    options = RegistrationOptions(**choices)
    with (
        reserved(out, overwrite),
        open_slide(he, mpp=mpp, series=series, page=page) as fixed,
        open_slide(
            ihc,
            mpp=moving_mpp,
            mpp_option="--moving-mpp",
            image_option="--moving-{}",
            series=moving_series,
            page=moving_page,
        ) as moving,
    ):
        frames = frame_of(fixed.info), frame_of(moving.info)
        matched = None if landmarks is None else read_landmark_pair(landmarks, frames[0].mpp, frames[1].mpp)
        found = register(fixed, moving, options, ProgressBar(quiet))
        report = report_of(*frames, options, found, matched)
        is_kept = found.transform is None and is_complete(out)
        if not is_kept:
            write_registration(out, fixed, moving, found.transform, report.to_json())
    if json:
        print_json(report.to_json())
    if found.transform is None:
        raise RegistrationError(
            f"{frames[1].name} could not be registered to {frames[0].name}: {found.reason.rstrip('.')}; "
            + (f"{out} keeps the earlier registration" if is_kept else f"see {out / 'before.png'}")
        )
    for warning in report.warnings if not quiet else ():
        print_err(f"WARNING: {warning}")
    if not json and not quiet:
        print_out(*summary(report))
        print_out(f"  written to {out}: transform.json, registration.json, before.png, after.png, deformation.png")


def summary(report: RegistrationReport) -> list[Line]:
    """Summarize a registration: what was found, how well, and the landmarks' errors after each stage."""
    found = report.registration
    turn_deg = (found.angle_deg + 180) % 360 - 180
    residual = "unknown" if found.residual_um is None else f"{found.residual_um:.3g} µm"
    took = [f"{name} {stage.seconds:.1f}" for name, stage in zip(numbered(found.stages), found.stages, strict=True)]
    is_local = found.transform is not None and found.transform.field is not None
    lines: list[Line] = [
        f"{report.moving.name} is registered to {report.fixed.name}",
        ("turned by", f"{round(turn_deg, 2) + 0.0:.2f}°{', mirrored' if found.mirrored else ''}"),
        ("scale", f"{found.scale:.4f}"),
        ("score", f"{found.score:.2f} (share of tissue blocks that are where the affine map puts them)"),
        (
            "residual",
            f"{residual} (median distance of blocks from "
            f"{'a local field that was not fitted to them' if is_local else 'the affine map'})",
        ),
        ("seconds", ", ".join(took)),
    ]
    if report.matched is not None and report.before is not None:
        lines += _landmark_table(report, report.matched, report.before)
    return lines


def _landmark_table(report: RegistrationReport, matched: MatchedLandmarks, before: LandmarkErrors) -> list[Line]:
    alone = matched.unmatched_fixed + matched.unmatched_moving
    names = numbered(report.registration.stages)
    rows = [("before", before), *zip(names, report.after, strict=True)]
    return [
        f"  landmarks: {pluralize(len(matched.ids), 'pair')}{f', {alone} without a partner' if alone else ''}; "
        "errors in µm",
        ("", "median", "90%", "most", "median rTRE"),
        *(
            (name, f"{of.median_um:.1f}", f"{of.p90_um:.1f}", f"{of.max_um:.1f}", f"{of.median_rtre:.3%}")
            for name, of in rows
        ),
    ]
