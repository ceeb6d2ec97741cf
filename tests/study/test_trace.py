"""The trace: its totals are those of the papers and of the measured memory, and Perfetto can read its file."""

import itertools
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from models.resnet import cifar_resnet, imagenet_resnet
from models.vgg import vgg

import minidl
import minidl.study
from minidl import Function, Tensor, nn
from minidl.functional import cross_entropy
from minidl.study.trace import Trace, trace
from tests.models.counting import no_draws


def forward(model, size, images=2):
    """The loss of random images."""
    rng = np.random.default_rng(0)
    return cross_entropy(model(Tensor(rng.standard_normal((images, size, size, 3), np.float32))), np.zeros(images, int))


def traced(model, size=32, images=2):
    with minidl.study.trace(model) as t:
        forward(model, size, images).backward()
    return t


@pytest.fixture(scope="module")
def resnet():
    """The trace of a training step of ResNet-8."""
    return traced(cifar_resnet(8))


# -- totals ------------------------------------------------------------------------------------------------------------


CIFAR = [
    (20, "A", 269_722, "40.6"),
    (20, "B", 272_474, "40.8"),
    (20, "C", 283_962, "42.6"),
    (20, "none", 269_722, "40.6"),
    (32, "A", 464_154, "68.9"),
    (56, "A", 853_018, "125.5"),
    (110, "A", 1_727_962, "252.9"),
]


@pytest.mark.parametrize(("depth", "shortcut", "parameters", "millions"), CIFAR)
def test_parameters_and_multiply_adds_of_cifar_networks_are_those_of_the_paper(depth, shortcut, parameters, millions):
    model = cifar_resnet(depth, shortcut)
    with minidl.no_grad(), trace(model) as t:
        forward(model, 32)
    assert t.parameters == parameters
    assert f"{t.macs / 2 / 1e6:.1f}" == millions


@pytest.mark.parametrize(
    ("make", "parameters", "billions"),
    [
        (lambda: vgg("A"), 132_863_336, "7.609"),
        (lambda: vgg("D"), 138_357_544, "15.470"),
        (lambda: vgg("D", batch_norm=True), 138_365_992, "15.470"),
        (lambda: imagenet_resnet(18), 11_689_512, "1.814"),
        (lambda: imagenet_resnet(34), 21_797_672, "3.664"),
        (lambda: imagenet_resnet(50), 25_557_032, "4.089"),
        (lambda: imagenet_resnet(50, variant="he2015"), 25_557_032, "3.858"),
    ],
    ids=["VGG-A", "VGG-D", "VGG-D with batch-norm", "ResNet-18", "ResNet-34", "ResNet-50", "ResNet-50 of the paper"],
)
def test_those_of_imagenet_networks_too(make, parameters, billions, monkeypatch):
    no_draws(monkeypatch)
    model = make().eval()
    with minidl.no_grad(), trace(model) as t:
        forward(model, 224, images=1)
    assert t.parameters == parameters
    assert f"{t.macs / 1e9:.3f}" == billions
    assert f"{parameters:,} parameters" in str(t)


def test_a_shared_parameter_counts_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with trace(model) as t:
        model(Tensor(np.ones((1, 4), np.float32)))
    assert t.parameters == 20
    assert t.macs == 2 * 16


def test_parameters_that_no_operation_used_are_counted_apart():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with trace(model) as t:
        model[0](Tensor(np.ones((1, 4), np.float32)))
    assert t.parameters == 20
    assert "20 parameters of the model were used by no operation" in str(t)


def small_vgg():
    """All kinds of layers: ReLU, max-pool, local response normalisation, flatten, dropout."""
    return vgg("A-LRN", num_classes=10, image_size=32)


class Masked(nn.Module):
    """An activation multiplied by a mask that the forward makes, by itself, and shifted by a running mean."""

    def __init__(self):
        self.conv, self.pool = nn.Conv2d(3, 16, 3), nn.GlobalAvgPool()
        self.shift = minidl.Buffer(np.ones(16, np.float32))

    def forward(self, x):
        """(N, H, W, 3) -> (N, 16)."""
        y = self.conv(x).tanh()
        y = y * Tensor((np.arange(y.numel()).reshape(y.shape) % 2).astype(np.float32)) * y
        return self.pool(y * self.shift)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cifar_resnet(20),
        lambda: cifar_resnet(20, shortcut="B"),
        lambda: cifar_resnet(8, shortcut="none"),
        small_vgg,
        Masked,
    ],
    ids=["ResNet-20", "option B", "plain-8", "VGG", "masked"],
)
def test_the_memory_is_that_which_is_measured(make):
    """NumPy tells tracemalloc of its arrays. What a forward pass leaves behind is what the graph keeps."""
    model, threads = make(), minidl.get_num_threads()
    minidl.set_num_threads(1)  # the scratch buffers of threads are filled by the first step
    forward(model, 32, 16).backward()
    t = traced(model, 32, 16)
    tracemalloc.start()
    forward(model, 32, 16).backward()
    images = 16 * 32 * 32 * 3 * 4
    before = tracemalloc.get_traced_memory()[0]
    loss = forward(model, 32, 16)
    measured = tracemalloc.get_traced_memory()[0] - before - images
    tracemalloc.stop()
    minidl.set_num_threads(threads)
    assert loss.requires_grad
    assert t.kept_bytes == pytest.approx(measured, rel=0.01)


def test_an_array_counts_once_though_many_keep_it(resnet):
    memories = {memory for op in resnet.ops for memory in op.keeps}
    everything = sum(memory.nbytes for op in resnet.ops for memory in op.keeps)
    anyway = [memory for memory in memories if getattr(memory.source, "kind", None) in ("parameter", "input")]
    assert resnet.kept_bytes == sum(memory.nbytes for memory in memories) - sum(memory.nbytes for memory in anyway)
    assert resnet.kept_bytes < 0.75 * everything
    assert {memory.source.name for memory in anyway} >= {"x", "conv1.weight", "fc.weight"}


# -- the table ---------------------------------------------------------------------------------------------------------


def cells(line):
    return line.split()


def lines(t, width=140):
    return t.table(width).split("\n")


def test_there_is_a_line_for_each_operation_below_its_stage(resnet):
    table = lines(resnet)
    titles = [number for number, line in enumerate(table[3:], 3) if line and not line.startswith((" ", "-"))]
    stages = [cells(table[number])[0] for number in titles]
    assert stages[:6] == ["CifarResNet", "layer1", "layer2", "layer3", "CifarResNet", "outside"]
    counts = [b - a - 1 for a, b in itertools.pairwise(titles)][:5]
    assert counts == [3, 7, 9, 9, 2]
    assert sum(counts) + 1 == len(resnet.ops)


def test_a_line_has_everything_there_is_to_know():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
    with trace(model) as t:
        model(Tensor(np.ones((2, 3), np.float32))).sum().backward()
    first, activation, second, total = t.ops
    table = lines(t)

    def times(op):
        return [f"{op.forward_seconds * 1e3:.2f}", f"{op.backward_seconds * 1e3:.2f}"]

    def norms(op):
        return [f"{op.value_norm:.3g}", f"{op.grad_norm:.3g}"]

    assert [cells(line) for line in (table[4], table[5], table[7], table[9])] == [
        ["0", "Linear", "2x3", "->", "2x4", "16", "24", *times(first), *norms(first)],
        ["1", "ReLU", "2x4", "->", "2x4", *times(activation), *norms(activation), "32", "B", "1"],
        ["1", "Linear", "2x4", "->", "2x2", "10", "16", *times(second), *norms(second), "(32", "B)", "0.1"],
        ["Sum", "2x2", "->", "()", *times(total), *norms(total)],
    ]
    assert cells(table[3])[:7] == ["0", "2x3", "->", "2x4", "16", "24", f"{sum_of_forward(first, activation)}"]


def sum_of_forward(*ops):
    return f"{sum(op.forward_seconds for op in ops) * 1e3:.2f}"


def test_the_stages_add_up_to_the_total(resnet):
    titles = [cells(line) for line in lines(resnet)[3:] if line and not line.startswith((" ", "-"))]
    total = next(title for title in titles if title[0] == "total")
    assert [title[4] for title in titles if title[0] == "CifarResNet"] == [f"{3 * 9 * 16 + 32}", "650"]
    parameters = sum(parameter.numel() for parameter in resnet.recording.model.parameters())
    assert total[1:3] == [f"{parameters / 1e3:.1f}k", f"{resnet.macs / 1e6:.1f}M"]
    milliseconds = [float(title[6]) for title in titles[:5]] + [float(titles[5][7])]
    assert sum(milliseconds) == pytest.approx(float(total[3]), abs=0.04)  # each is rounded to 0.01
    assert total[5:7] == [f"{resnet.kept_bytes / 2**20:.2f}", "MiB"]


def test_those_who_keep_the_same_array_are_named(resnet):
    table = "\n".join(lines(resnet))
    assert "128 KiB layer1.0.conv1\n" in table  # the first ReLU
    assert "(128 KiB) ReLU\n" in table  # layer1.0.conv1
    assert "128 KiB layer2.0.conv1\n" in table  # the last ReLU of layer1
    assert "(128 KiB) layer1.0 ReLU\n" in table


@pytest.mark.parametrize("width", [100, 110, 120, 140])
@pytest.mark.parametrize("make", [lambda: cifar_resnet(8), small_vgg], ids=["ResNet", "VGG"])
def test_no_line_is_too_long(make, width):
    """A narrow table leaves out the shapes of the inputs."""
    t = traced(make())
    assert max(map(len, lines(t, width))) <= width
    assert all(heading in t.table(width) for heading in ("operation", "mult-", "|dL/dy|", "who else"))
    assert ("->" in t.table(width)) == (width >= 120)


def test_the_table_is_as_wide_as_the_terminal(resnet, monkeypatch):
    for columns, width in ((80, 100), (110, 110), (200, 140)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert str(resnet) == resnet.table(width)
    assert (str(Trace(resnet.recording))) == str(resnet)


def test_the_shapes_stand_beside_a_long_title():
    with trace(nn.ReLU()) as t:
        (t.recording.model(Tensor(np.ones((2, 345), np.float32))) * 2.0).sum()
    line = next(line for line in t.table(140).split("\n") if line.startswith("outside of the model"))
    assert " ".join(line.split()[4:8]) == "2x345, () -> ()"


def test_without_backward_it_says_so(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with trace(model) as t:
        model(Tensor(np.ones((2, 3), np.float32)))
    t.save(tmp_path / "trace.json")
    counters = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "C"]
    assert counters[-1]["args"]["bytes"] == t.kept_bytes > 0  # nothing is freed
    assert "no backward ran inside the block" in str(t)
    assert "12 multiply-adds, 6 for each of 2 inputs" in str(t)


def test_a_number_alone_is_an_input_too():
    with trace(nn.ReLU()) as t:
        t.recording.model(Tensor(2.0))
    assert "() -> ()" in str(t)
    assert "0 multiply-adds\n" in str(t)


def test_parentheses_are_explained_where_there_are_some(resnet):
    words = "a number in parentheses is counted at the operation that the last column names first"
    assert words in str(resnet)
    with trace(nn.ReLU()) as t:
        t.recording.model(Tensor([2.0], requires_grad=True))
    assert words not in str(t)


def test_without_an_operation_it_says_so():
    with trace(nn.ReLU()) as t:
        pass
    assert str(t) == "trace: no operation ran inside the block"
    assert (t.parameters, t.macs, t.kept_bytes, t.forward_seconds, t.backward_seconds) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, ""),
        (7, "7"),
        (9_999, "9,999"),
        (10_000, "10.0k"),
        (99_960, "100k"),
        (999_600, "1.00M"),
        (15_470_264_320, "15.5G"),
    ],
)
def test_large_numbers_take_six_characters(number, text):
    model = nn.Linear(1, 1)
    with trace(model) as t:
        model(Tensor(np.ones((1, 1), np.float32)))
    t.ops[0].macs = number
    assert (cells(lines(t)[4])[5:6] == [text]) if number else ("1x1" in lines(t)[4])


def test_a_model_without_stages_is_one_group():
    model = nn.ReLU()
    with trace(model) as t:
        model(Tensor([1.0, -1.0]))
    assert [cells(line)[0] for line in lines(t)[3:5]] == ["ReLU", "ReLU"]


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def events(resnet, tmp_path):
    resnet.save(tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert document["displayTimeUnit"] == "ms"
    return document["traceEvents"]


def complete(events):
    return [event for event in events if event["ph"] == "X"]


def test_events_have_the_fields_of_the_format(events):
    """Trace Event Format: X is a complete event, C a counter, M metadata; times are in microseconds."""
    needed = {
        "X": {"name", "cat", "ts", "dur", "pid", "tid"},
        "C": {"name", "ts", "pid", "args"},
        "M": {"name", "args"},
    }
    assert {event["ph"] for event in events} == needed.keys()
    for event in events:
        assert needed[event["ph"]] <= event.keys()
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0
        assert isinstance(event["pid"], int)
    assert all(isinstance(value, int) for e in events if e["ph"] == "C" for value in e["args"].values())


def test_every_operation_is_there_forward_and_backward_with_its_time(events, resnet):
    for category, kind in (("forward", "forward"), ("backward", "backward")):
        found = [event for event in complete(events) if event["cat"] == category]
        assert len(found) == len(resnet.ops)
        assert sum(event["dur"] for event in found) == pytest.approx(getattr(resnet, f"{kind}_seconds") * 1e6)


def test_events_contain_one_another_as_layers_do(events):
    """Perfetto refuses events of one thread that overlap otherwise. An event lies inside those that began before it."""
    found, parents = [], {}
    for event in complete(events):
        end = event["ts"] + event["dur"]
        while found and found[-1]["ts"] + found[-1]["dur"] <= event["ts"] and end > found[-1]["ts"] + found[-1]["dur"]:
            found.pop()
        if found:
            assert end <= found[-1]["ts"] + found[-1]["dur"] + 1e-3
        parents.setdefault((event["name"], event["args"].get("layer")), []).append([outer["name"] for outer in found])
        found.append(event)
    assert parents["Conv2d", "layer2.0.conv1"] == [["CifarResNet", "layer2", "layer2.0", "layer2.0.conv1"]]
    assert parents["Conv2d backward", "layer2.0.conv1"] == [
        ["CifarResNet backward", "layer2 backward", "layer2.0 backward", "layer2.0.conv1 backward"]
    ]
    assert parents["CrossEntropy", None] == [[]]


def test_the_counter_rises_to_the_kept_bytes_and_falls_to_zero(events, resnet):
    values = [event["args"]["bytes"] for event in events if event["ph"] == "C"]
    assert max(values) == resnet.kept_bytes
    assert values[-1] == 0


class Explodes(Function):
    """y = infinity, dL/dx = NaN."""

    @staticmethod
    def forward(ctx, x):
        return x * np.float32(np.inf)

    @staticmethod
    def backward(ctx, grad):
        return grad * np.float32(np.nan)


def test_infinity_and_nan_are_shown_and_saved(tmp_path):
    """JSON has neither."""
    model = nn.Linear(3, 2)
    with trace(model) as t, np.errstate(invalid="ignore"):  # infinity minus infinity
        minidl.apply(Explodes, model(Tensor(np.ones((1, 3), np.float32)))).sum().backward()
    t.save(tmp_path / "trace.json")

    def refuse(name):
        raise ValueError(name)

    json.loads((tmp_path / "trace.json").read_text(), parse_constant=refuse)
    assert "inf" in str(t) and "nan" in str(t)


# -- the package -------------------------------------------------------------------------------------------------------


def test_minidl_does_not_load_it():
    code = "import minidl, sys; assert 'minidl.study' not in sys.modules; import minidl.study; minidl.study.trace"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trace_holds_no_array(resnet):
    assert all(op.value is None and op.grad is None and op.input_grads is None for op in resnet.ops)


def test_it_needs_the_model():
    with pytest.raises(TypeError, match="expected a Module, got Tensor"), trace(Tensor([1.0])):
        pass
