"""Writes the page: one HTML file that holds its style, its script and its data, and loads nothing."""

import html
import json
from importlib.resources import files

PARTS = files(__package__)
SCRIPTS = "elements", "network", "arrows", "panel", "overview", "keys"  # in this order: each uses those before it


def render(document: dict) -> str:
    """Return the HTML of a document made by `make_document`."""
    # "</script>" inside the data would end it. JSON may write "<" in any other way only inside strings.
    data = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _read("page.html")
    parts = {
        "title": html.escape(document["title"]),
        "style": _read("page.css"),
        "script": "\n".join(_read(f"{name}.js") for name in SCRIPTS),
        "document": data,
    }
    before, *rest = page.split("{")
    pieces = [before]
    for piece in rest:  # not str.format, and not one replace after the other: the data holds braces too
        name, _, after = piece.partition("}")
        pieces += [parts[name], after]
    return "".join(pieces)


def _read(name: str) -> str:
    return PARTS.joinpath(name).read_text(encoding="utf-8")
