"""HTML pages from the templates of the package, self-contained and with all text escaped."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_HIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and marks that reverse the text after them."""


def render_page(template: str, **values: Any) -> str:
    """Render a template. Text is escaped for HTML, and hidden characters in it are replaced.

    Raises
    ------
    jinja2.UndefinedError
        If the template uses a value that is not given.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("wsi2ihc"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
