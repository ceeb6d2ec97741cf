"""Kernels whose time is that of memory need few instructions for each number, or memory would wait: told by SASS.

An H200 reads and writes 4.3 TB/s: 18.5 bytes for each cycle of a multiprocessor, which executes at most 128
instructions of threads in that cycle, and about 80 in practice. batch_norm_apply moves 4 bytes for each bfloat16:
with more than 17 instructions for each, memory would wait.
"""

import re
import subprocess

import pytest

from tests.test_cuda_compiles import count, disassembler, nvrtc, variants  # noqa: F401 - three are fixtures

ROWS = 32  # of a thread in kernels with sums. The largest arrays of ResNet-50 give each thread more: 49 to 64.


def machine_code(name, constants, variants, nvrtc, disassembler, folder) -> list[str]:  # noqa: F811
    """The lines of a kernel's machine code: instructions and labels."""
    wanted = {"stored bfloat16", "index int", *constants}
    (variant,) = (v for v in variants if v.name == name and set(v.definitions) >= wanted)
    _, binary = nvrtc.compile(variant, 90)
    (folder / "kernel.cubin").write_bytes(binary)
    command = [disassembler, "-c", folder / "kernel.cubin"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def instructions_and_loops(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """All instructions up to the end of the kernel, and those of each loop."""
    instructions, labels, loops = [], {}, []
    for line in map(str.strip, lines):
        if found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(instructions)
        elif (found := re.match(r"/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)) and not found[1].startswith("NOP"):
            instructions.append(found[1])
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", found[1])
            if target and labels.get(target[1], len(instructions) - 1) < len(instructions) - 1:
                loops.append(instructions[labels[target[1]] :])
    return instructions, loops


def per_number(lines: list[str], rows: int, vector: int) -> float:
    """Instructions that a thread of `rows` rows executes for each of its numbers.

    Of the loops that read, one is unrolled, and the other does the rows that are left: none. A loop over the partial
    sums of a block counts once: in each round half of the threads have less to do.
    """
    instructions, loops = instructions_and_loops(lines)
    reading = sorted((loop for loop in loops if count("LDG", loop)), key=len)
    outside = len(instructions) - sum(map(len, reading))
    if not reading:
        return outside / (rows * vector)
    rows_at_once = count("LDG", reading[-1]) / count("LDG", reading[0])
    return len(reading[-1]) / (rows_at_once * vector) + outside / (rows * vector)


MARKS = {  # name: (rows of a thread, the most instructions for each number)
    "slab_moments": (ROWS, 6),  # 28.5 with a bfloat16 for each thread
    "slab_grad_sums": (ROWS, 6.5),  # 16
    "channel_sums": (ROWS, 4),
    "batch_norm_apply": (4, 7.5),  # 45
    "batch_norm_backward_x": (4, 10.5),  # 77
    "add": (1, 6),  # 24
    "relu_forward": (1, 6),  # 24
    "relu_backward": (1, 7),  # 29
    "shift_channels": (1, 10),
    "global_avg_pool_backward": (1, 15.5),  # two divisions of integers for each vector
}


@pytest.mark.parametrize("name", MARKS)
def test_a_kernel_has_few_instructions_for_each_bfloat16(name, variants, nvrtc, disassembler, tmp_path):  # noqa: F811
    rows, most = MARKS[name]
    constants = {"VECTOR 8", "THROUGH_STATISTICS 1"} if name == "batch_norm_backward_x" else {"VECTOR 8"}
    lines = machine_code(name, constants, variants, nvrtc, disassembler, tmp_path)
    assert per_number(lines, rows, 8) <= most
    instructions, loops = instructions_and_loops(lines)
    assert count("LDG", instructions) == count("LDG.E.128", instructions)  # 16 bytes at a time
    assert count("STG", instructions) == count("STG.E.128", instructions) > 0
    for loop in loops:
        assert not count("LDG", loop) or not count("MUFU", loop)  # no division for each number
    assert not re.search(r"\b(LDL|STL)\b", "\n".join(lines))
