"""benchmarks/gpu_model.py: what is recorded, what is read from the machine code, and what the model makes of both."""

import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path

import gpu_model
import pytest
import sass

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
H200, T4 = gpu_model.GPUS["H200"], gpu_model.GPUS["T4"]

# -- recorded launches -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A step of ResNet-20, batch 128, in bfloat16."""
    path = tmp_path_factory.mktemp("launches") / "launches.json"
    command = [sys.executable, BENCHMARKS / "launches.py", "resnet20", 128, "bfloat16", 90, path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def launches_named(recorded, name):
    return [launch for launch in recorded["launches"] if launch["kernel"] == name]


def test_a_step_is_recorded_with_the_real_sizes(recorded):
    forward = launches_named(recorded, "conv_forward")
    assert len(forward) == 20  # 19 convolutions and the last layer
    source, name, options = recorded["sources"][forward[1]["source"]]
    numbers = dict(zip(gpu_model.parameters_of(source, name), forward[1]["arguments"], strict=True))
    assert [numbers[key] for key in ("N", "H", "W", "C", "O")] == [128, 32, 32, 16, 16]
    assert numbers["x"]["bytes"] == 128 * 32 * 32 * 16 * 2
    assert gpu_model.constants_of(source, options)["TILE_COLUMNS"] == 16
    assert len(launches_named(recorded, "sgd_update")) == 1
    assert len(launches_named(recorded, "cupy: astype")) >= 20  # the weights, rounded


def test_a_large_batch_takes_no_memory(tmp_path):
    """A step of ResNet-50 with 512 images holds more than 40 GB; the images alone are 0.3 GB in float32."""
    program = "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]\n"
    program += "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    # Not ru_maxrss, which starts with what the process held that started this one.
    program += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    arguments = BENCHMARKS, BENCHMARKS / "launches.py", "resnet50", 512, "bfloat16", 90, tmp_path / "launches"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * 2**20  # KB


# -- machine code ------------------------------------------------------------------------------------------------------

CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R3], [R4.64] ;
.L_x_2:
        /*0020*/                   LDSM.16.MT88.4 R8, [R2] ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   LDG.E.U16 R5, [R6.64] ;
        /*0080*/                   FFMA R5, R5, R6, R7 ;
        /*0090*/               @P2 BRA `(.L_x_3) ;
        /*00a0*/                   CALL.REL.NOINC `($kernel$__internal_0_$__cuda_sm20_div) ;
        /*00b0*/                   STG.E.128 [R2.64], R4 ;
        /*00c0*/                   EXIT ;
$kernel$__internal_0_$__cuda_sm20_div:
        /*00d0*/                   FADD R1, R1, R1 ;
.L_x_4:
        /*00e0*/                   BRA `(.L_x_4) ;
        /*00f0*/                   NOP ;
"""


def test_loops_are_found_and_their_instructions_counted():
    code = sass.analyse("ptxas info : Used 40 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]", CODE)
    assert (code.registers, code.shared) == (40, 2048)
    outer, inner, last = code.loops
    assert code.inside == [-1, 0, -1]
    assert (outer.instructions, inner.instructions, last.instructions) == (6, 3, 3)
    assert (inner.tensor_macs, outer.tensor_macs, inner.shared) == (2048, 2048, 4)
    assert (outer.global_bytes, outer.shared, outer.loads, outer.barriers) == (16, 8, 0, 1)
    assert (last.global_bytes, last.loads, last.fma_macs, last.fp32) == (2, 1, 32, 1)
    assert (code.outside.instructions, code.outside.global_bytes) == (4, 16)  # without the division's rare case


def test_tf32_takes_twice_as_long():
    loop = sass.count(["HMMA.1688.F32.TF32 R4, R8, R10, R4", "@!P0 HMMA.1688.F32 R4, R8, R10, R4"])
    assert (loop.tensor_macs, loop.tensor_work, loop.hmma) == (2048, 3072, 2)


def test_a_wgmma_is_multiplied_by_four_warps_which_read_both_matrices():
    loop = sass.count(["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0"])
    assert loop.tensor_macs == loop.wgmma_macs == 64 * 128 * 16 / 4
    assert loop.shared == (64 + 128) * 16 * 2 / 128 / 4  # rows of 128 bytes
    assert (loop.wgmma_waits, loop.tensor_work, loop.hmma) == (1, 0, 0)


# -- the model ---------------------------------------------------------------------------------------------------------


def launch_of(kernel="add", loops=(), outside=None, inside=None, **changed):
    """A launch of one block of 256 threads with 32 registers."""
    code = sass.Code(32, 0, outside or sass.Loop(instructions=20), list(loops), inside or [-1] * len(loops))
    facts = {"grid": (1,), "block": (256,), "shared": 0, "numbers": {}, "bytes": 0, "itemsize": 2} | changed
    return gpu_model.Launch(kernel, code, **facts)


def product(**changed):
    """A 3x3 convolution of 64 channels by tiles of 128 x 64; a turn of the loop is 32 deep."""
    loop = sass.Loop(instructions=150, tensor_macs=32768, tensor_work=32768, hmma=16, global_bytes=48, shared=40)
    sizes = {"N": 8, "H": 16, "W": 16, "C": 64, "OH": 16, "OW": 16, "O": 64, "KH": 3, "KW": 3, "TILE_COLUMNS": 64}
    return launch_of("conv_forward", [loop], numbers=sizes, grid=(16, 1), **changed)


def test_the_turns_of_a_product_follow_from_its_depth():
    launch = product()
    assert launch.tile() == (128, 64)
    assert launch.turns() == {0: 9 * 64 / 32}
    assert launch.count(lambda loop: loop.instructions) == 20 + 18 * 150
    assert launch.macs == 8 * 16 * 16 * 64 * 64 * 9
    assert launch.count(lambda loop: loop.tensor_macs) * launch.warps * launch.blocks == launch.macs


def test_an_unrolled_loop_is_left_where_the_depth_ends():
    """Four steps of 32 in a turn; a 3x3 convolution of 16 channels is 144 deep."""
    launch = product()
    launch.code.loops[0].tensor_macs *= 4
    launch.numbers["C"] = 16
    assert launch.turns() == {0: 5 / 4}


def test_the_turns_of_a_loop_around_the_tensor_core_one_follow_from_what_it_copies():
    inner = sass.Loop(instructions=50, tensor_macs=16384)
    outer = sass.Loop(instructions=150, tensor_macs=16384, global_bytes=48)
    launch = launch_of("conv_forward", [outer, inner], inside=[-1, 0], numbers=product().numbers, grid=(16, 1))
    assert launch.turns() == {0: 18, 1: 36}
    assert launch.count(lambda loop: loop.instructions) == 20 + 18 * 100 + 36 * 50


def test_the_turns_of_other_kernels_follow_from_their_bytes():
    loop = sass.Loop(instructions=30, global_bytes=8, loads=4)
    tree = sass.Loop(instructions=10, barriers=1)
    launch = launch_of("slab_moments", [loop, tree], outside=sass.Loop(instructions=5, global_bytes=4), bytes=256 * 68)
    assert launch.turns() == {0: 8, 1: 8}  # 64 bytes by 8; log2(256)
    assert launch.waits() == (9, 0)


def test_pooling_reads_its_windows():
    rows, window = sass.Loop(instructions=30, global_bytes=8), sass.Loop(instructions=12, global_bytes=2)
    launch = launch_of("max_pool2d_forward_uint8", [rows, window], inside=[-1, 0], numbers={"KH": 3, "KW": 3})
    assert launch.turns() == {0: 1, 1: 9}


def test_blocks_share_a_multiprocessor_as_far_as_registers_and_shared_memory_go():
    assert gpu_model.blocks_at_once(launch_of(), H200) == 8  # by warps
    assert gpu_model.blocks_at_once(launch_of(), T4) == 4
    many = launch_of()
    many.code.registers = 128
    assert gpu_model.blocks_at_once(many, H200) == 2
    assert gpu_model.blocks_at_once(launch_of(shared=60 * 1024), H200) == 3


@pytest.mark.parametrize(("warps", "rate"), [(0.5, 0.115), (1, 0.23), (2, 0.41), (3, 0.52), (8, 0.79), (99, 0.9)])
def test_more_warps_issue_more(warps, rate):
    assert gpu_model.instructions_per_cycle(warps) == pytest.approx(rate)


def test_a_large_addition_is_bound_by_memory_and_a_product_by_its_instructions():
    count = 2**26
    blocks = count // 256
    outside = sass.Loop(instructions=20, global_bytes=6, loads=2)
    limits = gpu_model.times(launch_of(outside=outside, grid=(blocks,), bytes=6 * count), H200)
    assert max(limits, key=limits.get) == "memory"
    assert limits["memory"] == pytest.approx(6 * count / (0.8 * 4.3e12))
    large = product()
    large.grid, large.numbers["N"] = (16 * 1000, 1), 8 * 1000
    limits = gpu_model.times(large, H200)
    assert max(limits, key=limits.get) == "issue"
    assert limits["tensor"] == pytest.approx(2 * large.macs / (H200.tflops * 1e12), rel=0.01)


def test_a_block_that_waits_for_its_products_leaves_the_multiprocessor_to_the_others():
    """One block of a multiprocessor is bound by its waits, several by the tensor cores."""
    loop = sass.Loop(instructions=60, tensor_macs=65536, wgmma_macs=65536, wgmma_waits=1, shared=30, global_bytes=64)
    launch = launch_of("conv_forward", [loop], numbers=product().numbers | {"TILE_ROWS": 128}, block=(128,))
    launch.grid = (H200.multiprocessors,)
    alone, together = gpu_model.times(launch, H200), H200.clock / launch.turns()[0]
    assert max(alone, key=alone.get) == "latency"
    tensor = 4 * 65536 * 2 / (0.9 * 989e12) * H200.multiprocessors * H200.clock
    assert alone["tensor"] * together == pytest.approx(tensor, rel=0.01)
    assert alone["latency"] * together == pytest.approx(max(60 / 0.23, tensor) + gpu_model.WGMMA_WAIT, rel=0.3)
    launch.grid = (8 * H200.multiprocessors,)
    eight = gpu_model.times(launch, H200)
    assert max(eight, key=eight.get) == "tensor"
    assert eight["latency"] == pytest.approx(alone["latency"])


def test_lines_add_up_and_small_launches_cost_the_gap():
    lines = gpu_model.lines_of([launch_of(), launch_of(), {"kernel": "cupy: fill", "bytes": 0}], H200)
    assert {line["kernel"]: line["launches"] for line in lines} == {"add": 2, "cupy's own": 1}
    assert all(line["ms"] >= line["launches"] * 1000 * gpu_model.GAP for line in lines)
    assert list(lines[-1]["bounds"]) == ["launch"]


# -- all of it ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def nvrtc():
    try:
        for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm"):
            importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('needs NVRTC and nvdisasm: pip install ".[nvrtc]"')


def test_the_real_kernels_are_understood(recorded, nvrtc, tmp_path, monkeypatch):
    """The loops of a product, of batch statistics and of an element-wise kernel, in sm_90 code."""
    monkeypatch.setattr(sass, "CACHE", tmp_path)
    for name in ("conv_forward", "conv_backward_x", "conv_backward_weight"):
        (launch, *_) = launches_of(recorded, name)
        columns = launch.tile()[1]
        assert (launch.count(lambda loop: loop.wgmma_macs) > 0) == (columns >= 64)
        assert (launch.count(lambda loop: loop.hmma) > 0) == (columns < 64)
        padded = launch.count(lambda loop: loop.tensor_macs) * launch.warps / math.prod(launch.tile())
        assert launch.depth() <= padded < launch.depth() + 32, name
    (elementwise, *_) = launches_of(recorded, "relu_backward")
    moved = elementwise.count(lambda loop: loop.global_bytes) * elementwise.blocks * 256
    assert moved == pytest.approx(elementwise.bytes, rel=0.01)


def launches_of(recorded, name):
    """The launches of one kernel, the second of a kind, compiled."""
    chosen = launches_named(recorded, name)[1:2]
    sources = {launch["source"] for launch in chosen}
    codes = {i: sass.code_of(recorded["sources"][i][0], tuple(recorded["sources"][i][2]), 90) for i in sources}
    return gpu_model.launches_of(recorded | {"launches": chosen}, codes)


def test_the_table_stands_beside_what_was_measured(monkeypatch, tmp_path, capsys):
    lines = [{"kernel": "add", "launches": 3, "ms": 2.0, "peak_ms": 1.0, "bounds": {"memory": 2.0}}]
    monkeypatch.setattr(gpu_model, "model_step", lambda *_: (lines, "bfloat16"))
    record = {"device": {"gpu": "NVIDIA H200"}, "measurements": {}}
    table = {"lines": [{"kernel": "add", "ms": 3.0}], "graph_ms": 4.0}
    record["measurements"]["resnet20 b128/kernels"] = table
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    arguments = ["--models", "resnet20", "--measured", str(tmp_path / "gpu.json"), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", *arguments])
    gpu_model.main()
    output = capsys.readouterr().out
    assert "resnet20 b128 bfloat16 on H200: 2.00 ms" in output
    assert "T4" not in output
    (row,) = (line for line in output.splitlines() if line.startswith("  add"))
    assert row.split() == ["add", "3", "2.000", "memory", "50%", "3.000", "1.50"]
    assert "measured as a graph" in output
    assert json.loads((tmp_path / "out.json").read_text()) == {"resnet20 b128 bfloat16 on H200": lines}
