"""Formulas as MathML, converted when the site is built. Every current browser draws it without a script or a network.

MathJax would be 2 MB of JavaScript beside the pages, or a download by each reader. Images (sphinx.ext.imgmath) need a
LaTeX installation, and do not follow the font size and the colours of the page.
"""

import re
from xml.sax.saxutils import unescape

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number

# As operators, a slash, a partial derivative, infinity and a name such as relu would have wide spaces; `mod` should.
TIGHT_SLASH = '<mo lspace="0" rspace="0">/</mo>'


def to_mathml(latex: str, display: str) -> str:
    """The formula as a <math> element. An error if a command is unknown: latex2mathml would print it as text."""
    mathml = convert(latex.strip(), display=display)
    shown = unescape(re.sub(r"<[^>]*>", " ", mathml))
    if re.search(r"\\|(?<!\S)&(?!\S)", shown):
        raise ExtensionError(f"latex2mathml does not know a command in the formula: {latex}")
    mathml = re.sub(r"<mo>(∂|&#x02202;|∞|&#x0221E;|(?!mod<)[A-Za-z]{2,})</mo>", r"<mi>\1</mi>", mathml)
    return re.sub(r"<mo>(/|&#x0002F;)</mo>", TIGHT_SLASH, mathml)


def visit_math(translator, node: nodes.math) -> None:
    """A formula in a line of text."""
    translator.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_math_block(translator, node: nodes.math_block) -> None:
    """A formula of its own, with its number if it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})</span>')
    translator.body.append(to_mathml(node.astext(), "block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Register the renderer; conf.py selects it by html_math_renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
