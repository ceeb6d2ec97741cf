"""The site: it builds without a warning, every operation has a page, and every example prints what it shows."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minidl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHAPTERS = sorted((DOCS / "chapters").glob("*.md"))
PATHS = [str(ROOT / folder) for folder in ("examples", "docs/figures")]  # as the chapters' first lines say
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(path):
    """What the ```pycon blocks of a page hold, one below the other."""
    blocks = re.findall(r"^```pycon\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return "\n".join(blocks)


def run_examples(text, name):
    """What is wrong with the examples, and how many there are."""
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, name, 0)
    wrong = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    with minidl.fork_rng(0):
        runner.run(test, out=wrong.append)
    return "".join(wrong), len(test.examples)


@pytest.fixture
def as_a_chapter_says(monkeypatch):
    for path in PATHS:
        monkeypatch.syspath_prepend(path)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_examples_of_a_chapter_print_what_it_shows(path, as_a_chapter_says):
    wrong, count = run_examples(examples(path), path.name)
    assert not wrong, wrong
    assert count >= 3


def test_an_example_that_prints_something_else_is_found():
    assert run_examples(">>> 1 + 1\n2\n", "right") == ("", 1)
    assert "Expected:\n    3" in run_examples(">>> 1 + 1\n3\n", "wrong")[0]


def test_no_example_is_outside_of_the_blocks_that_are_run():
    for path in DOCS.rglob("*.md"):
        text = re.sub(r"^```console\n.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert text.count(">>> ") == examples(path).count(">>> "), path


def operations():
    """The names of all classes of minidl/ops that are operations."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "minidl" / "ops").glob("*.py")]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(getattr(base, "id", "") == "Function" for base in node.bases)}


def test_every_operation_has_a_derivation_and_every_derivation_an_operation():
    assert {path.stem for path in (DOCS / "derivations").glob("*.md")} == operations()
    assert len(operations()) >= 35


QUOTES = [
    (path, *quote)
    for path in CHAPTERS
    for quote in re.findall(
        r"^```\{literalinclude\} /\.\./(\S+)\n((?::.*\n)+)```$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
]


@pytest.mark.parametrize(("chapter", "file", "options"), QUOTES, ids=lambda value: getattr(value, "stem", None))
def test_a_chapter_quotes_code_by_a_name_that_exists(chapter, file, options):
    """Sphinx checks this too; here it takes no Sphinx. The quote of a function that has gone fails."""
    source = (ROOT / file).read_text(encoding="utf-8")
    options = dict(re.findall(r"^:([\w-]+): (.*)$", options, re.MULTILINE))
    assert options["caption"] == file
    if "pyobject" in options:
        body = ast.parse(source).body
        for name in options["pyobject"].split("."):
            (found,) = (node for node in body if getattr(node, "name", None) == name)
            body = getattr(found, "body", [])
    else:
        assert source.count(options["start-at"].strip("'\"")) == 1


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_a_derivation_the_code_and_something_to_try(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("$$") >= 2 and text.count("```{literalinclude}") >= 3 and text.count("```pycon") >= 2


def test_the_chapters_quote_the_code():
    assert len(QUOTES) > 40
    assert len(QUOTES) == sum(path.read_text(encoding="utf-8").count("{literalinclude}") for path in CHAPTERS)


# -- the built site ----------------------------------------------------------------------------------------------------


def build(out):
    """Run sphinx-build as CI and users do."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-E",
        "-d",
        out.parent / "doctrees",
        DOCS,
        out,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    for package in ("sphinx", "myst_parser", "furo", "sphinx_design", "latex2mathml"):
        pytest.importorskip(package, reason='the site needs `pip install ".[docs]"`')
    out = tmp_path_factory.mktemp("site") / "html"
    done = build(out)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def pages(site):
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_it_builds_without_a_warning_and_has_all_pages(site):
    wanted = {f"operations/{name}.html" for name in operations()} | {f"chapters/{path.stem}.html" for path in CHAPTERS}
    assert wanted < pages(site).keys()


def test_the_page_of_an_operation_has_all_its_columns(site):
    text = pages(site)["operations/Conv2d.html"]
    for title in ("Derivation", "Forward", "Backward", "The loops", "The CPU kernel", "The CUDA kernel", "The test"):
        assert re.search(rf">\s*{title}\s*<", text), title
    for file in ("ops/conv.py", "kernels/reference.py", "kernels/cpu/conv.py", "kernels/cuda/conv.py"):
        assert f"minidl/{file}" in text
    assert "extern" in text and "conv_backward_weight" in text  # the CUDA source itself
    assert "<math" in text


def test_nothing_is_loaded_from_the_network(site):
    for name, text in pages(site).items():
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_formula_became_mathml(site):
    for name, text in pages(site).items():
        assert "\\frac" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL), name


# -- the tools that build it -------------------------------------------------------------------------------------------


@pytest.fixture
def tools(monkeypatch):
    pytest.importorskip("sphinx", reason='the site needs `pip install ".[docs]"`')
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))


def test_an_unknown_command_in_a_formula_is_an_error(tools):
    from mathml import to_mathml
    from sphinx.errors import ExtensionError

    assert "<mfrac>" in to_mathml(r"\frac{a}{b}", "inline")
    for formula in (r"\nosuchcommand{x}", "a & b"):
        with pytest.raises(ExtensionError, match="does not know"):
            to_mathml(formula, "block")


def test_a_quote_of_a_name_that_is_gone_is_an_error(tools):
    from sources import KERNELS, find

    place = find(KERNELS / "cuda" / "activation.py", "RELU_FORWARD")
    lines = place.path.read_text().splitlines()
    assert lines[place.first - 1] == "RELU_FORWARD = CudaKernel(" and lines[place.last - 1] == ")"
    with pytest.raises(LookupError, match=r"minidl/kernels/cuda/activation\.py does not define SILU_FORWARD"):
        find(KERNELS / "cuda" / "activation.py", "SILU_FORWARD")


def test_an_operation_without_a_derivation_stops_the_build(tools):
    from operations import Operation, page
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match=r"Silu has no derivation: write docs/derivations/Silu\.md"):
        page(Operation(ROOT / "minidl" / "ops" / "activation.py", "Silu"))


def test_the_kernels_of_an_operation_are_found(tools):
    from operations import kernels_of, of_a_device, operations
    from sources import KERNELS

    by_name = {operation.name: operation for operation in operations()}
    assert kernels_of(by_name["Linear"], "backward") == [
        "linear_backward_x",
        "linear_backward_weight",
        "bias_backward",
    ]
    assert kernels_of(by_name["BatchNormEval"], "forward") == ["batch_norm_apply"]
    assert kernels_of(by_name["Exp"], "forward") == []
    launched = [place.name for place in of_a_device(KERNELS / "cuda", "relu_forward")]
    assert launched == ["RELU_FORWARD", "relu_forward"]


DOCSTRING = """y = x * w_ + |b|: see `relu`.

    dL/dx = w * g

- one *point*,
  continued

Args:
    count: the number
        of images.

>>> 1 + 1
2
"""


def test_a_docstring_becomes_text_as_it_stands(tools):
    from docstrings import to_rst

    assert "\n".join(to_rst(DOCSTRING.splitlines())).splitlines() == [
        r"y = x \* w\_ + \|b\|: see ``relu``.",
        "",
        ".. code-block:: none",
        "",
        "    dL/dx = w * g",
        "",
        r"- one \*point\*,",
        "  continued",
        "",
        "**Arguments**",
        "",
        "- ``count``: the number",
        "  of images.",
        "",
        ">>> 1 + 1",
        "2",
    ]
