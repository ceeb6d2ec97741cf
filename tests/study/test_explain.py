"""`python -m minidl.study explain`: the page's contents, the graph, and bad input. The browser is in another file."""

import base64
import html
import inspect
import io
import itertools
import json
import os
import re
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minidl
from minidl import Tensor, nn
from minidl.functional import cat, cross_entropy, relu
from minidl.kernels import cpu, reference
from minidl.ops.batch_norm import BatchNormEval
from minidl.ops.conv import Conv2d
from minidl.ops.pool import MaxPool2d
from minidl.study.__main__ import main
from minidl.study._input import load_weights
from minidl.study._network import find_network
from minidl.study.explain import BadInputError, explain
from minidl.study.page.document import TooLargeError, make_document
from minidl.study.page.graph import Fork, Port, graph_of
from minidl.study.page.layout import lay_out
from minidl.study.page.pictures import picture
from minidl.study.page.source import coloured, helpers_of, kernels_called, quoted, saved_names, source_of
from minidl.study.page.tree import Folded, Group, fold, grow, ops_of
from minidl.study.page.words import shape_text
from minidl.study.record import Op, record


class Block(nn.Module):
    """A residual block without batch-norm."""

    def __init__(self, channels):
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        """x + F(x)."""
        return relu(self.conv2(relu(self.conv1(x))) + x)


def small(blocks=2):
    """A convolution, residual blocks, and a classifier."""
    layers = [Block(4) for _ in range(blocks)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*layers), nn.GlobalAvgPool(), nn.Linear(4, 5))


def recorded(model, shape=(1, 8, 8, 3)):
    """The recording of a training step."""
    x = Tensor(np.random.default_rng(0).standard_normal(shape, np.float32), requires_grad=True)
    with record(model) as recording:
        y = model(x)
        (cross_entropy(y, np.array([1])) if y.ndim == 2 else (y * y).mean()).backward()
    return recording


def document_of(page):
    """The JSON inside a page."""
    return json.loads(re.search(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)[1])


def boxes_of(group):
    """All boxes of a document's graph, here and below."""
    for box in group["graph"]["boxes"]:
        yield box
        if box["kind"] == "group":
            yield from boxes_of(box)


def groups_of(group):
    """A tree's groups."""
    yield group
    for child in group.children:
        if isinstance(child, Group):
            yield from groups_of(child)


# -- layout ------------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw):
    """The number of boxes of an acyclic graph, and its edges."""
    boxes = draw(st.integers(1, 9))
    pairs = [(i, j) for j in range(boxes) for i in range(j)]
    return boxes, draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []


@given(graphs())
def test_no_two_things_of_a_layout_are_in_the_same_place(graph):
    boxes, edges = graph
    layout = lay_out(boxes, edges)
    cells = [
        (row, column)
        for row, (first, last) in zip(layout.rows, layout.spans, strict=True)
        for column in range(first, last + 1)
    ]
    cells += [
        (row, column) for (i, j), column in layout.wires.items() for row in range(layout.rows[i] + 1, layout.rows[j])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for _, column in cells) + 1 == layout.columns
    assert all(layout.rows[i] < layout.rows[j] for i, j in edges)
    assert layout.wires.keys() == {(i, j) for i, j in edges if layout.rows[j] - layout.rows[i] > 1}


@given(graphs())
def test_a_box_fills_only_the_rows_of_its_own_wire(graph):
    layout = lay_out(*graph)
    for box, (row, last) in enumerate(zip(layout.rows, layout.lasts, strict=True)):
        if last > row:
            [(end, column)] = [(j, column) for (i, j), column in layout.wires.items() if i == box]
            assert layout.spans[box] == (column, column) and last == layout.rows[end] - 1


def test_a_residual_block_has_its_shortcut_in_the_second_column():
    layout = lay_out(5, [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)])
    assert layout.rows == [0, 1, 2, 3, 4] and layout.wires == {(0, 3): 1}
    assert layout.spans == [(0, 1), (0, 0), (0, 0), (0, 1), (0, 0)]


# -- tree and graph ----------------------------------------------------------------------------------------------------


def test_the_tree_has_all_operations_under_the_names_of_their_modules():
    recording = recorded(small())
    tree = grow(recording)
    assert list(ops_of(tree)) == recording.ops
    assert [group.name for group in groups_of(tree)] == ["", "1", "1.0", "1.1"]
    assert [child.layer for child in tree.children if isinstance(child, Op)] == ["0", "2", "3", None]


def test_a_module_that_is_called_twice_is_two_groups():
    class Twice(nn.Module):
        def __init__(self):
            self.block = Block(3)

        def forward(self, x):
            return self.block(relu(self.block(x)))

    tree = grow(recorded(Twice()))
    assert [child.name if isinstance(child, Group) else child.function.__name__ for child in tree.children[:3]] == [
        "block",
        "ReLU",
        "block",
    ]


def test_the_two_contributions_at_a_skip_connection_add_up_and_the_shortcut_changes_nothing():
    recording = recorded(small())
    block = next(group for group in groups_of(grow(recording)) if group.name == "1.1")
    graph = graph_of(block, recording)
    [fork] = [box for box in graph.boxes if isinstance(box, Fork)]
    through, shortcut = fork.paths
    add = next(op for op in recording.ops if op.layer == "1.1" and op.function.__name__ == "Add")
    conv = next(op for op in recording.ops if op.layer == "1.1.conv1")
    assert through.end is conv and shortcut.end is add
    assert through.unchanged_from() is None and shortcut.unchanged_from() is add
    np.testing.assert_array_equal(shortcut.grad(), add.grad)
    np.testing.assert_array_equal(through.grad() + shortcut.grad(), fork.source.grad)


def test_the_gradient_on_the_edge_behind_a_box_is_the_whole_one():
    recording = recorded(small())
    for group in groups_of(grow(recording)):
        for edge in graph_of(group, recording).edges:
            if not isinstance(edge.start, Fork | Port):
                np.testing.assert_allclose(edge.grad(), edge.source.grad, rtol=1e-6)


@pytest.mark.parametrize(
    "join", [lambda x: x * x.sigmoid(), lambda x: (x + 1) * x.tanh()], ids=["a product", "the sum with a number"]
)
def test_what_is_no_shortcut_that_changes_nothing(join):
    class Gate(nn.Module):
        def forward(self, x):
            return join(x)

    recording = recorded(Gate())
    [fork] = [box for box in graph_of(grow(recording), recording).boxes if isinstance(box, Fork)]
    assert [path.unchanged_from() for path in fork.paths] == [None, None]


def test_the_contribution_through_the_layers_is_that_of_a_block_whose_shortcut_is_cut():
    model = Block(3)
    x = Tensor(np.random.default_rng(1).standard_normal((1, 6, 6, 3), np.float32), requires_grad=True)
    seed = Tensor(np.random.default_rng(2).standard_normal((1, 6, 6, 3), np.float32))
    with record(model) as recording:
        model(x).backward(seed)
    [fork] = [box for box in graph_of(grow(recording), recording).boxes if isinstance(box, Fork)]
    x.grad = None
    relu(model.conv2(relu(model.conv1(x))) + x.detach()).backward(seed)
    np.testing.assert_allclose(fork.paths[0].grad(), x.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_every_value_that_enters_or_leaves_a_group_has_an_edge():
    class Joined(nn.Module):
        def __init__(self):
            self.down, self.up = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            a = self.down(x)
            return self.up(cat([a, relu(a * 2)], 3))

    recording = recorded(Joined())
    for group in groups_of(grow(recording)):
        graph = graph_of(group, recording)
        inside = set(ops_of(group))
        wanted = {
            (source, (op, number))
            for op in recording.ops
            for number, source in enumerate(op.inputs)
            if (op in inside or source in inside) and (isinstance(source, Op) or source.kind == "input")
            if not any(isinstance(box, Group) and {op, source} <= set(ops_of(box)) for box in graph.boxes)
        }
        found = {(edge.source, use) for edge in graph.edges for use in edge.uses}
        assert found == wanted
        assert [box for box in graph.boxes if isinstance(box, Port)]


# -- repetitions -------------------------------------------------------------------------------------------------------


def test_of_a_long_repetition_the_first_and_the_last_remain():
    recording = recorded(small(blocks=12))
    tree = grow(recording)
    fold(tree)
    stage = tree.children[1]
    assert [child.name if isinstance(child, Group) else "folded" for child in stage.children] == [
        "1.0",
        "folded",
        "1.11",
    ]
    assert stage.children[1].repetitions == 10
    assert list(ops_of(tree)) == recording.ops


def test_a_repetition_of_several_layers_is_folded_and_a_short_one_is_not():
    layers = [layer for _ in range(5) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU(), nn.ReLU())]
    tree = grow(recorded(nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(3, 5))))
    fold(tree)
    names = [len(child.children) if isinstance(child, Folded) else child.function.__name__ for child in tree.children]
    assert names[:7] == ["Conv2d", "ReLU", "ReLU", 9, "Conv2d", "ReLU", "ReLU"]
    document = make_document(recorded(small(blocks=12)), {})
    assert "folded" not in {box["kind"] for box in boxes_of(document["network"])}  # it is small anyway
    short = grow(recorded(small(blocks=3)))
    fold(short)
    assert not any(isinstance(child, Folded) for group in groups_of(short) for child in group.children)


def test_1202_layers_are_folded_into_a_small_page():
    document = document_of(explain("resnet1202"))
    stages = [box for box in document["network"]["graph"]["boxes"] if box["kind"] == "group"]
    titles = [[box.get("title") for box in stage["graph"]["boxes"] if box["kind"] != "port"] for stage in stages]
    assert titles == [
        ["layer1.0", "198 more", "layer1.199"],
        ["layer2.0", "layer2.1", "197 more", "layer2.199"],
        ["layer3.0", "layer3.1", "197 more", "layer3.199"],
    ]
    assert len(document["chart"]["norms"]) == 4210 and len(document["chart"]["skips"]) == 600
    assert sum(1 for box in boxes_of(document["network"]) if box["kind"] == "op") < 100


def test_a_network_of_too_many_different_operations_is_refused():
    widths = [3, *np.random.default_rng(0).integers(1, 9, 1010).tolist()]
    layers = [nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths)]
    for layer in layers:
        layer.weight.data[...] = 0  # or a thousand layers would overflow
    with pytest.raises(TooLargeError, match=r"runs 1,01\d operations.*a page holds 1,000"):
        make_document(recorded(nn.Sequential(*layers), (1, 1, 1, 3)), {})


# -- source ------------------------------------------------------------------------------------------------------------

QUOTED = [
    Conv2d.forward,
    Conv2d.backward,
    cpu.conv2d_backward,
    reference.conv2d_forward,
    BatchNormEval.forward,
    explain,
]


@pytest.mark.parametrize("function", QUOTED, ids=lambda function: function.__qualname__)
def test_quotes_are_the_source_as_it_stands(function):
    text = html.unescape(re.sub(r"<[^>]*>", "", quoted(function)["html"]))
    assert text.rstrip() == textwrap.dedent(inspect.getsource(function)).rstrip()
    path, _, line = quoted(function)["place"].partition(":")
    lines = (Path(minidl.__file__).parents[1] / path).read_text(encoding="utf-8").splitlines()
    assert lines[int(line) - 1].strip() == text.splitlines()[0].strip()


def test_colours():
    line = coloured("def f(x):  # why\n    return len('a < b') + 1.5 + x.len")
    assert '<i class="kw">def</i> <i class="def">f</i>(x):  <i class="co"># why</i>' in line
    assert '<i class="bi">len</i>(<i class="st">&#x27;a &lt; b&#x27;</i>) + <i class="nu">1.5</i> + x.len' in line
    assert "--in:4" in line


def test_source_that_python_cannot_read_is_shown_all_the_same():
    text = re.sub(r"<[^>]*>", "", coloured("x = 1\n'''never\nended"))
    assert html.unescape(text) == "x = 1\n'''never\nended\n"


def test_the_kernels_of_an_operation_are_found_in_its_source():
    assert kernels_called(Conv2d.forward) == ["conv2d_forward"]
    assert kernels_called(Conv2d.backward) == ["conv2d_backward", "bias_backward"]
    assert kernels_called(MaxPool2d.backward) == ["max_pool2d_backward"]
    names = [helper.__name__ for helper in helpers_of([cpu.conv2d_backward])]
    assert "_backward_of_a_phase" in names and "backward_weight" in names  # Winograd's, too


def test_what_is_saved_has_the_names_of_the_source():
    assert saved_names(Conv2d) == ["x", "weight", "stride", "padding"]
    assert saved_names(BatchNormEval) == ["x", "mean", "variance", "weight", "eps"]


def test_every_operation_of_minidl_can_be_described():
    from minidl.study.page.quotes import describe

    functions = [f for f in minidl.Function.__subclasses__() if f.__module__.startswith("minidl.ops")]
    assert len(functions) > 30
    for function in functions:
        quotes = []
        described = describe(function, lambda f, quotes=quotes: quotes.append(f) or f.__qualname__)
        assert described["formula"] and described["levels"][0]["title"] == "The operation"
        assert all(source_of(quote) for quote in quotes)


# -- pictures ----------------------------------------------------------------------------------------------------------


def pixels_of(image):
    """The decoded PNG of a data URI, RGBA."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).convert("RGBA"))


def test_blue_is_negative_amber_positive_black_zero_magenta_nan():
    array = np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32).reshape(1, 1, 4, 1)
    negative, zero, positive, nan = pixels_of(picture(array))[0, :, :3].astype(int)
    assert negative[2] > negative[0] and positive[0] > positive[2]
    assert zero.tolist() == [0, 0, 0] and nan.tolist() == [255, 0, 255]


def test_a_picture_has_the_channels_that_it_names_and_small_ones_stay_exact():
    array = np.zeros((1, 4, 5, 12), np.float32)
    array[0, 2, 3, 4] = 1
    image = picture(array)
    assert image["channels"] == [0, 2, 4, 6, 8, 10] and image["largest"] == "1"
    bright = np.argwhere(pixels_of(image)[:, :, :3].max(axis=2) > 200)
    assert [2, 2 * 6 + 3] in bright.tolist()


def test_large_maps_are_averaged():
    array = np.ones((1, 224, 224, 3), np.float32)
    image = picture(array)
    assert image["height"] == 56 and len(np.unique(pixels_of(image)[:, :56].reshape(-1, 4), axis=0)) == 1
    assert picture(np.ones((1, 4096), np.float32))["width"] == 512
    assert picture(np.float32(1.0)) is None and picture(np.ones((0, 3))) is None


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet20():
    """The page of ResNet-20."""
    return explain("resnet20")


def test_the_page_of_resnet20_is_small_and_loads_nothing(resnet20):
    assert len(resnet20.encode()) < 3e6
    assert "default-src 'none'" in resnet20 and not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", resnet20)
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|url\(", resnet20)
    assert resnet20.count("</script>") == 2


def test_the_page_of_resnet20_has_all_operations_with_their_source(resnet20):
    document = document_of(resnet20)
    ops = [box for box in boxes_of(document["network"]) if box["kind"] == "op"]
    assert sorted(box["op"] for box in ops) == list(range(73))
    conv = next(box for box in ops if box["layer"] == "layer2.0.conv1")
    assert conv["shape"] == shape_text((1, 16, 16, 32)) and ["stride", "(2, 2)"] in conv["hyperparameters"]
    assert [saved["name"] for saved in conv["saved"]] == ["x", "weight", "stride", "padding"]
    activation = next(box for box in ops if box["title"] == "ReLU")
    assert [saved["same"] for saved in activation["saved"]] == ["y, its own result"]
    assert document["network"]["graph"]["edges"][0]["shape"] == shape_text((32, 32, 3))  # of one image
    assert conv["saved"][0]["bytes"] == "65,536" and conv["saved"][0]["same"] == "layer1.2 (ReLU)"
    assert [entry["name"] for entry in conv["inputs"]] == ["x", "weight", "bias"] and conv["value"] and conv["grad"]
    function = document["functions"][conv["function"]]
    assert [level["title"] for level in function["levels"]] == ["The operation", "Plain loops", "CPU kernel"]
    assert function["formula"] == inspect.cleandoc(Conv2d.__doc__)
    for level in function["levels"]:
        assert all(document["quotes"][key]["html"] for key in [*level["forward"], *level["backward"]])


def test_a_block_by_itself_has_its_own_skip_connection_in_the_chart_and_no_other(tmp_path):
    """The block's input has two consumers; y * y of the loss is no skip connection."""
    (tmp_path / "blocks.py").write_text(
        "from models.resnet import BasicBlock\n\n\ndef block():\n    return BasicBlock(4, 4, stride=1, shortcut='A')\n"
    )
    document = document_of(explain(f"{tmp_path}/blocks.py:block", input_shape=(8, 8, 4)))
    (skip,) = document["chart"]["skips"]
    (fork,) = [box for box in boxes_of(document["network"]) if box["kind"] == "fork"]
    assert skip["at"] < 0
    assert [skip["near"], skip["far"]] == pytest.approx([path["norm"] for path in fork["paths"]])
    assert skip["sum"] == pytest.approx(fork["total"]["norm"])


def test_the_page_of_resnet20_has_nine_skip_connections_with_three_norms(resnet20):
    document = document_of(resnet20)
    forks = [box for box in boxes_of(document["network"]) if box["kind"] == "fork"]
    assert len(forks) == len(document["chart"]["skips"]) == 9
    for fork in forks:
        through, shortcut = (path["norm"] for path in fork["paths"])
        assert abs(through - shortcut) <= fork["total"]["norm"] * 1.001 and fork["total"]["norm"] <= through + shortcut
        assert all(path["picture"] for path in fork["paths"])
    # Two blocks begin with another shortcut, which adds channels of zeros: there the gradient loses what was not used.
    assert [fork["paths"][1]["unchanged"] for fork in forks] == [True] * 3 + [False, True, True] * 2


def test_markup_in_a_name_is_no_markup(tmp_path, monkeypatch):
    write(tmp_path, "net</script><b>.py", MAKE)
    page = explain(f"{tmp_path}/net</script><b>.py:make")
    assert page.count("</script>") == 2 and "<b>" not in page.replace("<body>", "")
    assert document_of(page)["title"].endswith("net</script><b>.py:make: forward and backward")


def test_braces_in_the_data_are_no_places_of_the_template(tmp_path):
    write(tmp_path, "{script}.py", MAKE)
    document = document_of(explain(f"{tmp_path}/{{script}}.py:make"))
    assert document["title"].endswith("{script}.py:make: forward and backward")


@pytest.mark.parametrize("is_first", [False, True])
def test_the_chart_tells_the_shortcut_from_the_layers_in_whatever_order_they_are_computed(is_first):
    class Projected(Block):
        def __init__(self):
            super().__init__(4)
            self.projection = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            shortcut = self.projection(x) if is_first else None
            y = self.conv2(relu(self.conv1(x)))
            return relu(y + (shortcut if is_first else self.projection(x)))

    document = make_document(recorded(nn.Sequential(nn.Conv2d(3, 4, 3), Projected())), {})
    through = {box["layer"]: box["inputs"][0]["norm"] for box in boxes_of(document["network"]) if box["kind"] == "op"}
    [skip] = document["chart"]["skips"]
    assert (skip["near"], skip["far"]) == (through["1.conv1"], through["1.projection"])


def test_norms_in_the_page_are_those_of_the_gradients():
    model = small()
    document = make_document(recorded(model), {})
    boxes = list(boxes_of(document["network"]))
    conv = next(box for box in boxes if box.get("layer") == "1.0.conv1")
    weight, bias = (np.linalg.norm(p.grad.numpy()) for p in (model[1][0].conv1.weight, model[1][0].conv1.bias))
    assert [entry["norm"] for entry in conv["inputs"][1:]] == pytest.approx([weight, bias], rel=1e-3)
    fork = next(box for box in boxes if box["kind"] == "fork")
    assert fork["paths"][0]["to"] == "conv1" and fork["paths"][0]["norm"] == conv["inputs"][0]["norm"]
    add = next(box for box in boxes if box["kind"] == "op" and box["detail"] == "Add")
    assert fork["paths"][1]["norm"] == pytest.approx(float(add["grad_norm"]), rel=5e-3)


# -- networks of the user's own ----------------------------------------------------------------------------------------

HEAD = "import minidl\nfrom minidl import nn\n"
MAKE = (
    HEAD + "def make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(4, 3))\n"
)
OWN = (
    HEAD
    + '''
class Cube(minidl.Function):
    """y = x^3.   dL/dx = 3 x^2 dL/dy."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return times_three(x**2) * grad


def times_three(x):
    return 3 * x


class Net(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return minidl.apply(Cube, self.fc(x)).reshape(2)


def make():
    return Net()
'''
)


def write(folder, name, text):
    """Write a file, in a folder that is made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_an_operation_of_the_users_own_shows_its_source(tmp_path):
    write(tmp_path, "cubes.py", OWN)
    document = document_of(explain(f"{tmp_path}/cubes.py:make"))
    box = next(box for box in boxes_of(document["network"]) if box.get("title") == "Cube")
    function = document["functions"][box["function"]]
    assert function["formula"] == "y = x^3.   dL/dx = 3 x^2 dL/dy." and box["category"] == "own"
    [level] = function["levels"]
    assert "times_three(x**" in document["quotes"][level["backward"][0]]["html"]
    assert [document["quotes"][key]["place"].partition(":")[0] for key in level["helpers"]] == ["cubes.py"]
    facts = dict(document["facts"])
    assert facts["loss"].startswith("the mean of the squares") and facts["input"].startswith("random numbers")


UNUSUAL = (
    HEAD
    + """
import functools


class Square(minidl.Function):
    forward = staticmethod(
        lambda ctx, x: (
            ctx.save(x)
            or x * x
        )
    )
    backward = staticmethod(functools.partial(lambda ctx, grad, factor: factor * grad * ctx.saved[0], factor=2))


class Lambda(nn.Module):
    forward = lambda self, x: (
        minidl.apply(Square, x) + 1.0
    )


def scaled(self, x, factor):
    return factor * x - 1.0


class Partial(nn.Module):
    forward = functools.partialmethod(scaled, factor=2.0)


def make():
    return nn.Sequential(nn.Linear(6, 2), Lambda(), Partial())
"""
)


def test_methods_written_as_lambdas_over_several_lines_and_as_partials_are_quoted(tmp_path):
    write(tmp_path, "unusual.py", UNUSUAL)
    document = document_of(explain(f"{tmp_path}/unusual.py:make"))
    boxes = list(boxes_of(document["network"]))
    (level,) = document["functions"]["unusual.Square"]["levels"]
    assert "ctx.save(x)" in document["quotes"][level["forward"][0]]["html"]
    assert "ctx.saved" in document["quotes"][level["backward"][0]]["html"]
    quoted = {box["detail"]: document["quotes"][box["quote"]]["html"] for box in boxes if box["kind"] == "group"}
    assert "minidl.apply" in quoted["Lambda"] and quoted["Partial"]


def test_a_module_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, "net_here.py", MAKE)
    monkeypatch.chdir(tmp_path)
    document = document_of(explain("net_here:make", input_shape=(9, 7, 3)))
    assert document["network"]["graph"]["boxes"][0]["shape"] == shape_text((1, 9, 7, 3))


def test_a_file_may_import_another_one_of_its_folder(tmp_path):
    write(tmp_path, "beside_it.py", MAKE)
    write(tmp_path, "importing.py", "from beside_it import make\n")
    assert document_of(explain(f"{tmp_path}/importing.py:make"))["title"].startswith(str(tmp_path))


def test_a_grey_photograph_is_scaled_and_cut(tmp_path):
    write(tmp_path, "grey.py", MAKE.replace("Conv2d(3,", "Conv2d(1,"))
    Image.fromarray(np.full((50, 80, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    document = document_of(explain(f"{tmp_path}/grey.py:make", image=str(tmp_path / "photo.png")))
    [given] = [box for box in boxes_of(document["network"]) if box["kind"] == "input"]
    assert given["shape"] == shape_text((1, 32, 32, 1)) and (pixels_of(given["photograph"])[:, :, 0] == 200).all()
    assert dict(document["facts"])["input"].startswith("photo.png")


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)], ids=["wide", "tall"])
def test_of_a_photograph_the_middle_is_taken(tmp_path, axes):
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 28:62] = (0, 250, 0)
    Image.fromarray(pixels.transpose(axes)).save(tmp_path / "long.png")
    document = document_of(explain("resnet20", image=str(tmp_path / "long.png")))
    seen = pixels_of(document["network"]["graph"]["boxes"][0]["photograph"])
    assert (seen[1:-1, 1:-1, :3] == (0, 250, 0)).all()


@pytest.mark.parametrize(("mode", "function"), [("train", "BatchNorm"), ("eval", "BatchNormEval")])
def test_the_mode_is_that_of_the_network(mode, function):
    functions = {entry["name"] for entry in document_of(explain("resnet20", mode=mode))["functions"].values()}
    assert {name for name in functions if name.startswith("BatchNorm")} == {function}


def test_weights_are_loaded_and_evaluated(tmp_path):
    write(tmp_path, "net_saved.py", MAKE)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(4, 3))
    model.modules[3].bias.data[...] = (0, 50, 0)
    network = {"names": ["cat", "dog", "cow"]}
    extra = {"mean": np.zeros(3, np.float32), "std": np.float32(255)}
    minidl.save_checkpoint(tmp_path / "w.safetensors", model, None, {"network": network}, extra)
    document = document_of(explain(f"{tmp_path}/net_saved.py:make", weights=str(tmp_path / "w.safetensors")))
    facts = dict(document["facts"])
    assert facts["prediction"] == "class 1 (dog), 100.0%" and facts["mode"].startswith("evaluation")
    given = np.float64(document["network"]["graph"]["boxes"][0]["value"]["largest"])
    assert 0 < given <= 1  # scaled by the mean and std of the file
    assert facts["pixels scaled"].endswith("in the file of the weights")


def test_published_weights_of_imagenet_networks_get_torchvisions_pixels(tmp_path):
    found = find_network("resnet18")
    minidl.save_checkpoint(tmp_path / "w.safetensors", found.model)
    loaded = load_weights(found.model, str(tmp_path / "w.safetensors"), found.statistics)
    assert loaded.mean == pytest.approx([123.675, 116.28, 103.53]) and "torchvision" in loaded.scaling
    assert "127.5" in load_weights(found.model, None, found.statistics).scaling


def test_a_result_of_several_rows_has_no_classes(tmp_path):
    write(
        tmp_path,
        "rows.py",
        MAKE.replace("nn.GlobalAvgPool()", "nn.Flatten(), Rows()").replace("Linear(4", "Linear(6") + ROWS,
    )
    facts = dict(document_of(explain(f"{tmp_path}/rows.py:make"))["facts"])
    assert facts["loss"].startswith("the mean of the squares") and facts["prediction"] is None


def test_the_label_that_is_given_is_the_class_of_the_loss():
    document = document_of(explain("resnet20", label=7))
    loss = document["network"]["graph"]["boxes"][-1]
    assert dict(loss["hyperparameters"])["labels"] == "array([7])"
    facts = dict(document["facts"])
    assert facts["loss"] == "cross-entropy with class 7, as given"
    assert facts["mode"] == "training: batch-norm takes its statistics of this image alone"


ROWS = """

class Rows(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 6)
"""
NAN = """
def nan():
    model = make()
    model.modules[0].weight.data[...] = float("inf")
    return model
"""


def test_values_that_are_not_finite_are_said_and_are_no_broken_json(tmp_path):
    write(tmp_path, "nans.py", MAKE + NAN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = explain(f"{tmp_path}/nans.py:nan")
    data = re.search(r'id="document">(.*?)</script>', page, re.DOTALL)[1]
    document = json.loads(data, parse_constant=lambda name: pytest.fail(name))
    assert any("not finite" in note for note in document["notes"])


# -- bad input ---------------------------------------------------------------------------------------------------------

FAILING = (
    HEAD
    + """
class Bad(minidl.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1

    @staticmethod
    def backward(ctx, grad):
        return grad.nothing


class Net(nn.Module):
    def __init__(self, layer):
        self.first, self.second = nn.Conv2d(3, 4, 3), layer

    def forward(self, x):
        return self.second(self.first(x))


class Last(nn.Module):
    def forward(self, x):
        return minidl.apply(Bad, x)


class Two(nn.Module):
    def forward(self, x):
        return x, x


class Asserts(nn.Module):
    def forward(self, x):
        assert x.ndim == 2


class Numpy(nn.Module):
    def forward(self, x):
        return minidl.Tensor(x.numpy())


class Argmax(nn.Module):
    def forward(self, x):
        return x.argmax(3)


class Nothing(nn.Module):
    def forward(self, x):
        return x[:0]


def shapes():
    return Net(nn.Sequential(nn.ReLU(), nn.Conv2d(5, 2, 3)))


def one_position():
    return Net(nn.Sequential(nn.AvgPool2d(30), nn.BatchNorm2d(4)))


def double():
    return Net(nn.Conv2d(4, 2, 3).to("float64"))


def backward():
    return Net(Last())


def two():
    return Net(Two())


def asserts():
    return Net(Asserts())


def numpy():
    return Net(Numpy())


def argmax():
    return Net(Argmax())


def nothing():
    return Net(Nothing())


def raises():
    return 1 / 0


def number():
    return 3


def arguments(depth, width=1):
    return None


def unknown():
    return Two()
"""
)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("resnet21", {}, r"no network 'resnet21'; known are resnet20, .*vgg16.*MODULE:FUNCTION"),
        ("no_such_module:make", {}, r"cannot import no_such_module \(ModuleNotFoundError.*run it in the folder"),
        ("no/such/file.py:make", {}, r"there is no file no/such/file.py"),
        ("{}/syntax.py:make", {}, r"cannot import .*syntax.py \(SyntaxError.*mend it first"),
        ("{}/failing.py:absent", {}, r"has no function 'absent'; it has .*Net, .*shapes"),
        ("{}/failing.py:arguments", {}, r"needs no arguments, got arguments\(depth, width=1\).*def make"),
        ("{}/failing.py:raises", {}, r"raised ZeroDivisionError: division by zero"),
        ("{}/failing.py:number", {}, r"to return a minidl.nn.Module, got int; return the network"),
        ("{}/failing.py:unknown", {}, r"input of .* is unknown.*--input-shape"),
        ("{}/failing.py:shapes", {}, r"fails in layer 'second.1' \(Conv2d\): ValueError: conv2d: x has 4.*32x32x3"),
        (
            "{}/failing.py:one_position",
            {},
            r"layer 'second.1' \(BatchNorm2d\): .*more than one number per channel.*--mode eval",
        ),
        ("{}/failing.py:double", {}, r"layer 'second' \(Conv2d\): .*images are float32; return the network with"),
        ("{}/failing.py:backward", {}, r"fails in the backward of Bad, layer 'second': AttributeError"),
        ("{}/failing.py:two", {}, r"expected the network to return a Tensor, got tuple"),
        ("{}/failing.py:asserts", {}, r"fails in layer 'second' \(Asserts\): AssertionError; the input was 32x32x3"),
        ("{}/failing.py:numpy", {}, r"no gradient flows back from the result, .*outside of no_grad"),
        ("{}/failing.py:argmax", {}, r"no gradient flows back .* int64 of shape \(1, 30, 30\)"),
        ("{}/failing.py:nothing", {}, r"no gradient flows back .* of shape \(0, 30, 30, 4\)"),
        ("resnet20", {"label": 10}, r"--label: expected a class in 0 ... 9, got 10"),
        ("resnet20", {"image": "{}/failing.py"}, r"--image: .*failing.py is not an image that can be decoded"),
        ("resnet20", {"image": "{}/none.png"}, r"--image: cannot read .*none.png \(No such file"),
        ("resnet20", {"weights": "{}/none"}, r"--weights: .*none.*(No such file|not a complete)"),
        ("resnet20", {"weights": "{}/failing.py"}, r"--weights: .*failing.py is not a complete safetensors file"),
        ("resnet20", {"weights": "{}/other.safetensors"}, r"--weights: .*other.safetensors.*missing \['conv1.weight'"),
        ("{}/mlp.py:make", {"image": "x.png"}, r"--image: the network takes inputs of shape \(4,\), not images"),
    ],
)
def test_bad_input_is_answered_by_a_sentence(tmp_path, network, options, message):
    write(tmp_path, "syntax.py", "def make(:\n")
    write(tmp_path, "failing.py", FAILING)
    write(tmp_path, "mlp.py", HEAD + "def make():\n    return nn.Linear(4, 2)\n")
    minidl.save_checkpoint(tmp_path / "other.safetensors", nn.Linear(2, 2))
    options = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(BadInputError, match=message):
        explain(network.format(tmp_path), **options)


def command(*words):
    """Run the command as `python -m minidl.study` does."""
    return main(["explain", *words])


def test_the_command_writes_the_page_and_says_where(tmp_path, monkeypatch, capsys):
    write(tmp_path, "tiny.py", MAKE)
    monkeypatch.chdir(tmp_path)
    assert command("tiny.py:make") == 0
    assert capsys.readouterr().out.startswith("wrote make.html (0.")
    assert (
        document_of((tmp_path / "make.html").read_text(encoding="utf-8"))["title"]
        == "tiny.py:make: forward and backward"
    )


def test_the_command_answers_bad_input_by_one_line(tmp_path, capsys):
    os.mkfifo(tmp_path / "device")
    for words in (
        ["resnet21"],
        ["resnet20", "--out", str(tmp_path)],
        ["resnet20", "--out", f"{tmp_path}/no/page.html"],
        ["resnet20", "--out", str(tmp_path / "device")],
        ["resnet20", "--out", str(tmp_path / ("long" * 100))],
    ):
        assert command(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("explain: ") and error.count("\n") == 1


def test_a_page_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, capsys):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("minidl.study.explain.write_whole", refuse)
    write(tmp_path, "tiny.py", MAKE)
    assert command(f"{tmp_path}/tiny.py:make", "--out", f"{tmp_path}/page.html") == 2
    assert "--out: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["32x", "axb", "0x3", "-1", ""])
def test_an_input_shape_that_is_none_is_an_error_of_the_command(text, capsys):
    with pytest.raises(SystemExit):
        command("resnet20", f"--input-shape={text}")
    assert "expected a shape such as 32x32x3 or 784" in capsys.readouterr().err


def test_without_the_examples_the_known_networks_are_explained_as_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minidl.study._network.inspect.getfile", lambda thing: str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(BadInputError, match=r"resnet20 is one of the repository's examples.*in a clone"):
        explain("resnet20")


def test_without_an_image_a_shape_is_drawn(resnet20):
    assert dict(document_of(resnet20)["facts"])["input"] == f"a drawn star, {shape_text((32, 32, 3))}"
