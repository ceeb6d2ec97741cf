"""The site: `pip install ".[docs]"`, then `sphinx-build -W docs build/site`, and open build/site/index.html."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "examples"), str(HERE.parent)]

project = "minidl"
language = "en"
author = "the authors of minidl"
copyright = author
extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "mathml",
    "docstrings",
    "figures",
    "operations",
    "explained",
]
exclude_patterns = ["derivations", "explained"]  # parts of the pages of the operations
nitpicky = False  # the docstrings name types in plain words

myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 90

html_theme = "furo"
html_title = "minidl"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["explained"]  # pages of `python -m minidl.study explain`
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {"footer_icons": [], "sidebar_hide_name": False}
