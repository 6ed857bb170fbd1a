"""HTML pages: escaped, self-contained, and complete."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from jinja2 import UndefinedError

from wsi2ihc.pages import render_page

HOSTILE = "<script>alert('1')</script> \"quoted\" {{ title }} \x1b[2J \u202egnp.svs\u2066 \x85"
TEMPLATES = sorted(path.name for path in files("wsi2ihc").joinpath("templates").iterdir())


def batch(text: str) -> str:
    card = {"status": "done", "title": text, "link": text, "thumbnail": text, "lines": [text]}
    return render_page("batch.html", counts=text, notes=[text], cards=[card])


def test_text_is_escaped_and_nothing_hidden_remains() -> None:
    page = batch(HOSTILE)
    assert "<script" not in page
    assert page.count("{{ title }}") == page.count("&lt;script&gt;") == page.count("&#34;quoted&#34;") == 6
    assert not set("\x1b\u202e\u2066\x85") & set(page)


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="counts"):
        render_page("batch.html", notes=[], cards=[])


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_refer_to_no_other_site(name: str) -> None:
    text = files("wsi2ihc").joinpath("templates", name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|\burl\(|@import|<script|<link| on[a-z]+=|\|\s*safe", text)


def test_a_page_may_load_images_only() -> None:
    assert "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'" in batch("").replace("&#39;", "'")
