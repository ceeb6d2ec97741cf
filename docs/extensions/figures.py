"""The figures: each script of docs/figures has a function draw(), which returns a figure of Matplotlib.

They are drawn when the site is built, into docs/figures/drawn, which git ignores: measured figures are then those of
the code as it is. A figure is drawn again if its script or any file of the package is newer.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import matplotlib
from matplotlib.figure import Figure
from sources import PACKAGE, ROOT
from sphinx.application import Sphinx

FIGURES = ROOT / "docs" / "figures"
DRAWN = FIGURES / "drawn"
GREY = "#808890"  # can be read on white and on black

STYLE = {
    "svg.hashsalt": "minidl",  # the same file at every build
    "font.size": 10,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=["#3a86d8", "#e07a2f", "#3fa672", "#b05cc4"]),
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}


def load(script: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(f"figure_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(script: Path) -> Figure:
    """The figure of a script, in the style of the site."""
    with matplotlib.rc_context(STYLE):
        return load(script).draw()


def save_all(app: Sphinx) -> None:
    """Draw what is missing or out of date."""
    DRAWN.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in PACKAGE.rglob("*.py"))
    for script in sorted(FIGURES.glob("*.py")):
        file = DRAWN / f"{script.stem}.svg"
        if not file.exists() or file.stat().st_mtime < max(newest, script.stat().st_mtime):
            with matplotlib.rc_context(STYLE):
                draw(script).savefig(file, metadata={"Date": None}, bbox_inches="tight")


def setup(app: Sphinx) -> dict:
    """Draw before Sphinx looks for the files."""
    app.connect("builder-inited", save_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
