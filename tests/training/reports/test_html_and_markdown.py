"""HTML and Markdown of reports: complete, self-contained, and escaped."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from wsi2ihc.training.reports.document import Column, Estimate, Figure, Report, Section, Table, attachments_of
from wsi2ihc.training.reports.markdown import escaped, markdown_text, paragraph
from wsi2ihc.training.reports.write import html_page

HOSTILE = '<script>alert("1")</script> & "Müller" \'s | a*b_c_\n`x` [l](http://x.y) ![i](http://x.y) &lt; $1$ \\'

VOID = {"meta", "img", "br", "link", "input"}


@dataclass
class Page(HTMLParser):
    """What is in an HTML document; fails if its elements are not closed in order."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._open += [] if tag in VOID else [tag]
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    parser.close()
    assert parser._open == []
    return parser


def noise(height: int = 20, width: int = 30) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def report() -> Report:
    figures = Table(
        "figures",
        "Figures by model",
        (Column("model"), Column("PSNR (dB)", 2), Column("images"), Column("FID", 1)),
        (
            ("variance", Estimate(22.1649, 21.0, 23.5), 1234, Estimate(None, reason="no weights named")),
            (HOSTILE, Estimate(-0.5), None, Estimate(None, reason=HOSTILE)),
        ),
        ("A note.", HOSTILE),
    )
    photograph = Figure(HOSTILE, HOSTILE, noise(40, 50), HOSTILE, "photograph")
    sections = (
        Section("Summary", ("One paragraph.",), (figures, Figure("plot", "A plot", noise()), figures)),
        Section(HOSTILE, (HOSTILE,), (photograph,)),
    )
    return Report(HOSTILE, ("Lead.", HOSTILE), sections)


@pytest.fixture
def page(report: Report) -> Page:
    return parsed(html_page(report, attachments_of(report)))


def test_page_has_title_language_and_contents(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert page.texts["title"] == [HOSTILE]
    assert page.texts["h1"] == [HOSTILE]
    assert page.texts["h2"] == ["Summary", HOSTILE]
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == [f"#{attributes['id']}" for attributes in page.all("section")]
    assert page.texts["a"] == page.texts["h2"]


def test_page_has_all_tables_and_cells(page: Page) -> None:
    head, first, second = page.tables[0]
    assert head == ["model", "PSNR (dB)", "images", "FID"]
    assert first == ["variance", "22.16 (21.00 to 23.50)", "1,234", "–a"]
    assert second == [HOSTILE, "−0.50", "", "–b"]
    assert page.tables[1] == page.tables[0]
    assert {attributes["title"] for attributes in page.all("span") if "title" in attributes} == {
        "no weights named", HOSTILE
    }  # fmt: skip
    notes = page.texts["p"]
    assert notes.count("a no weights named") == notes.count(f"b {HOSTILE}") == notes.count("A note.") == 2
    assert [attributes["class"] for attributes in page.all("th")[:4]] == ["text", "number", "number", "number"]


def test_page_embeds_all_figures(page: Page, report: Report) -> None:
    plot, photograph = page.all("img")
    assert (plot["alt"], photograph["alt"]) == ("A plot", HOSTILE)
    assert page.texts["figcaption"] == [HOSTILE]
    assert (photograph["width"], photograph["height"]) == ("50", "40")
    for image, kind, most in ((plot, "png", 0.0), (photograph, "jpeg", 20.0)):
        head, data = image["src"].split(",")
        assert head == f"data:image/{kind};base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
            assert opened.format == kind.upper()
            found = np.asarray(opened.convert("RGB")).astype(float)
        pixels = noise() if kind == "png" else noise(40, 50)
        assert np.abs(found - pixels).mean() <= most


def test_page_is_self_contained_without_scripts(page: Page, report: Report) -> None:
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            address = attributes.get(name, "#")
            assert address.startswith("#") or urlsplit(address).scheme == "data"
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_control_characters_are_replaced() -> None:
    report = Report("a\x00b\x1bc\x85d \u00a0\u200de", (), ())
    assert parsed(html_page(report, ())).texts["title"] == ["a\ufffdb\ufffdc\ufffdd \u00a0\u200de"]


def test_empty_report() -> None:
    report = Report("Nothing", (), (Section("Empty", (), (Table("t", "", (Column("a"),), ()),)),))
    page = parsed(html_page(report, attachments_of(report)))
    assert page.tables == [[["a"]]]
    assert "h3" not in page.texts
    assert not parsed(html_page(Report("Nothing", (), ()), ())).all("nav")


def test_markdown_has_the_same_content(report: Report) -> None:
    files = attachments_of(report)
    text = markdown_text(report, files)
    blocks = text.rstrip("\n").split("\n\n")
    assert blocks[0] == f"# {escaped(HOSTILE)}"
    assert [block for block in blocks if block.startswith("## ")] == ["## Summary", f"## {escaped(HOSTILE)}"]
    tables = [block for block in blocks if block.startswith("| ")]
    assert len(tables) == 2
    head, rule, first, second = (re.split(r"(?<!\\)\|", line)[1:-1] for line in tables[0].split("\n"))
    assert [one.strip() for one in head] == ["model", "PSNR (dB)", "images", "FID"]
    assert [one.strip() for one in rule] == ["---", "---:", "---:", "---:"]
    assert [one.strip() for one in first] == ["variance", "22.16 (21.00 to 23.50)", "1,234", "– (a)"]
    assert [one.strip() for one in second] == [escaped(HOSTILE), "−0.50", "", "– (b)"]
    assert blocks.count("(a) no weights named") == 2
    paths = re.findall(r"\]\(((?:tables|figures)/[^)]+)\)", text)
    assert paths == [file.path for section in files for file in section]
    assert f"![A plot]({files[0][1].path})" in blocks


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a*b_c", r"a\*b\_c"),
        ("x | y\nz", r"x \| y z"),
        ("<b> & &amp; &#65; AT&T", r"\<b\> & \&amp; \&#65; AT&T"),
        ("[l](u)", r"\[l\](u)"),
        ("~~`c`~~ $x$", r"\~\~\`c\`\~\~ \$x\$"),
    ],
)
def test_markdown_escapes_text(text: str, safe: str) -> None:
    assert escaped(text) == safe


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("12. a", r"12\. a"),
        ("1) a", r"1\) a"),
        ("===", r"\==="),
        ("1.5 dB", "1.5 dB"),
    ],
)
def test_paragraph_escapes_block_markup(text: str, safe: str) -> None:
    assert paragraph(text) == safe


def test_file_names_are_safe_and_unique() -> None:
    names = ["a/../b", "A-..-B", "..", "", "ü", "x" * 300, "level 3+"]
    sections = (Section("s", (), tuple(Table(name, "", (Column("a"),), ()) for name in names)),)
    paths = [file.path for file in attachments_of(Report("r", (), sections))[0]]
    assert paths[:5] == [
        "tables/a-..-b.csv", "tables/A-..-B-2.csv", "tables/unnamed.csv", "tables/unnamed-2.csv", "tables/unnamed-3.csv"
    ]  # fmt: skip
    assert paths[6] == "tables/level-3+.csv"
    assert len({path.lower() for path in paths}) == len(paths)
    assert max(map(len, paths)) < 100


def test_large_photograph_is_saved_as_png() -> None:
    long = np.zeros((65_536, 1, 3), dtype=np.uint8)
    ((file,),) = attachments_of(Report("r", (), (Section("s", (), (Figure("p", "", long, kind="photograph"),)),)))
    assert (file.path, file.media_type) == ("figures/p.png", "image/png")
