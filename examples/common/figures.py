"""Figures of matplotlib, saved as whole files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from minidl.system.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write the figure in the format of the suffix: png, pdf or svg. An old file stays until the new one is whole."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    write_whole(path, content.getvalue())
