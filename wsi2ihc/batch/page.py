"""The page of a batch: a thumbnail of every slide with its figures, failed ones first."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from ..pyramid import published
from ..text import printable
from .places import thumbnail_path
from .results import Result, counts_text, describe_models

PAGE_NAME = "summary.html"


def write_page(folder: Path, results: Sequence[Result], notes: Sequence[str] = ()) -> None:
    """Write the page of an output folder.

    Raises
    ------
    OutputError
        If it cannot be written, or another process is writing it.
    """
    ordered = sorted(results, key=lambda result: (result.status != "failed", result.slide, result.output))
    models = (f"{name}: {description}" for name, description in describe_models(results).items())
    text = _PAGE.format(
        counts=_shown(counts_text(results)),
        notes="".join(f"<p>{_shown(note)}</p>" for note in [*models, *notes]),
        cards="\n".join(_cards(folder, ordered)),
    )
    with published(folder / PAGE_NAME, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _cards(folder: Path, results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        is_done = result.status.startswith("done")
        thumbnail = thumbnail_path(folder / result.output)
        picture = (
            f'<img loading="lazy" src="{quote(thumbnail.relative_to(folder).as_posix())}" alt="">'
            if is_done and thumbnail.exists()
            else '<div class="none">no picture</div>'
        )
        output = _shown(result.output)
        title = f'<a href="{quote(result.output)}">{output}</a>' if is_done else output or _shown(result.slide)
        figures = [
            f"{result.seconds} s" if result.seconds else "",
            f"{result.mpx_per_s} Mpx/s" if result.mpx_per_s else "",
            f"seam z {result.seam_z}" if result.seam_z else "no seams to measure" if is_done else "",
            result.device,
            f"{result.attempts} attempts" if result.attempts not in ("", "0", "1") else "",
        ]
        made = f"{result.slide} by {result.model}" if result.model else result.slide
        lines = [made, " · ".join(figure for figure in figures if figure), result.warnings, result.error]
        told = "".join(f"<p>{_shown(line)}</p>" for line in lines if line)
        yield (
            f'<article class="{_shown(result.status.split()[0])}">{picture}<h2>{title}</h2>'
            f"<p><b>{_shown(result.status)}</b></p>{told}</article>"
        )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Batch</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; }}
article {{ border: 1px solid #8886; border-top: 4px solid #888; border-radius: 6px; padding: .8rem; }}
article.done {{ border-top-color: #2a7; }}
article.failed {{ border-top-color: #c33; }}
img, .none {{ width: 100%; height: 180px; object-fit: contain; background: #fff; }}
.none {{ display: grid; place-items: center; color: #888; background: #8881; }}
h2 {{ font-size: 1rem; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }}
p {{ margin: .1rem 0; overflow-wrap: anywhere; }}
</style></head><body>
<h1>Batch</h1><p>{counts}. Virtual stains are computed: research use only, not for diagnosis.</p>{notes}
<main>
{cards}
</main></body></html>
"""


def _shown(text: str) -> str:
    """Text for the page, of which a name can turn around or hide nothing."""
    return html.escape(printable(text))
