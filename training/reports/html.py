"""Self-contained HTML page of a report."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from wsi2ihc.pages import render_page

from .document import Attachment, Figure, Report, Table, format_cell, numeric_columns, reason_marks

PLOT_SCALE = 0.7
"""Displayed size of plots relative to their pixels, for sharp rendering on high-density screens and paper."""


def html_page(report: Report, attachments: Sequence[Sequence[Attachment]]) -> str:
    """Return the report as one HTML document with the figures that `attachments_of` encoded."""
    return render_page(
        "report.html",
        report=report,
        attachments=attachments,
        data_url=_data_url,
        displayed_size=_displayed_size,
        format_cell=format_cell,
        is_table=lambda content: isinstance(content, Table),
        numeric_columns=numeric_columns,
        reason_marks=reason_marks,
        zip=lambda *iterables: zip(*iterables, strict=True),
    )


def _displayed_size(figure: Figure) -> tuple[int, int]:
    scale = PLOT_SCALE if figure.kind == "plot" else 1.0
    height, width = (max(1, round(side * scale)) for side in figure.pixels.shape[:2])
    return width, height


def _data_url(file: Attachment) -> str:
    return f"data:{file.media_type};base64,{base64.b64encode(file.content).decode('ascii')}"
