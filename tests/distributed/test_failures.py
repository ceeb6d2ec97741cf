"""When a rank fails, all end soon, with a message that names it."""

import os
import re
import subprocess
import sys
import time

import pytest

from minidl.distributed import SingleProcess, start
from tests.distributed.ranks import ROOT, environment, mpiexec, needs_mpi


@needs_mpi
def test_a_killed_rank_ends_the_job_and_its_process_is_named():
    began = time.monotonic()
    result = mpiexec(3, "killed")
    assert result.returncode != 0 and time.monotonic() - began < 300
    (process,) = re.findall(r"killed: process (\d+)", result.stdout)
    named = re.findall(r"minidl.distributed: (.*) was killed \(SIGKILL\)", result.stderr)
    assert named == [f"rank 1 of 3, process {process},"]


@needs_mpi
def test_a_rank_that_does_not_come_is_named():
    result = mpiexec(3, "missing")
    assert result.returncode != 0
    assert re.search(r"rank [02] of 3 ends the job: waited 3 s in a collective call for rank 1;", result.stderr)


@needs_mpi
def test_ranks_that_make_different_calls_do_not_wait_for_ever():
    result = mpiexec(3, "mismatch")
    assert result.returncode != 0
    assert re.search(r"ends the job: (waited \d+ s in a collective call|.*MPI_ERR)", result.stderr), result.stderr


@needs_mpi
def test_a_rank_that_does_not_start_is_not_waited_for():
    result = mpiexec(2, "unstarted")
    assert result.returncode != 0
    assert "ValueError: no such option" in result.stderr
    assert re.search(
        r"rank 0 of 2, process \d+, waited for ranks that did not start, until the timeout; the job ends", result.stderr
    )


@needs_mpi
def test_gradients_that_an_error_left_on_their_way_are_not_used():
    result = mpiexec(2, "skipped")
    assert result.returncode != 0
    assert "average: an earlier block ended with an error" in result.stderr


@needs_mpi
def test_gradients_that_are_still_on_their_way_at_the_end_are_not_waited_for():
    result = mpiexec(2, "left_on_the_way", timeout=60)
    assert result.returncode != 0
    assert "ended while gradients were on their way" in result.stderr


@needs_mpi
def test_a_rank_that_is_late_is_waited_for():
    result = mpiexec(2, "slow")
    assert (result.returncode, result.stdout.count("done")) == (0, 2)


@needs_mpi
def test_no_message_of_the_watch_is_left_at_the_end():
    """MPI demands it of a program. MPICH between machines, as here, warns of each message that nobody received."""
    result = mpiexec(3, "slow", env={"UCX_TLS": "tcp,self", "MPIR_CVAR_NOLOCAL": "1"})
    assert (result.returncode, result.stdout.count("done"), result.stderr) == (0, 3, "")


@needs_mpi
@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("failing", "ValueError: the disk is full"),
        ("leaving", r"by sys.exit"),
        ("unconnected", "ValueError: no NVLink"),
    ],
)
def test_a_rank_that_leaves_ends_the_job(job, message):
    result = mpiexec(3, job)
    assert result.returncode != 0
    assert re.search(rf"rank 1 of 3 ends the job: (.|\n)*{message}", result.stderr)


@needs_mpi
def test_the_checks_name_the_ranks_that_differ_on_every_rank(tmp_path):
    result = mpiexec(3, "checks", tmp_path)
    assert result.returncode == 0, result.stderr
    digest = r"digest [0-9a-f]{12}"
    expected = (
        rf"check_same: expected the same arguments on every rank, got ranks 0 and 1: {digest}; rank 2: {digest}; "
        rf"start all ranks alike \| check_same: expected the same data on every rank, got rank 0: {digest}; "
        rf"rank 1: {digest}; rank 2: {digest}; start all ranks alike \| rank 1: RuntimeError: check_shared_folder: "
        r"expected to see in .*own-1.*; rank 2: .*own-2.* \| rank 1: ValueError: no such data"
    )
    for rank in range(3):
        assert re.search(rf"^rank {rank}: {expected}$", result.stdout, re.MULTILINE), result.stdout


def python(code, **env):
    """The last line that a fresh interpreter prints on an error."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment() | env, capture_output=True, text=True
    )
    return result.stderr.strip().splitlines()[-1]


START = "import minidl.distributed\nwith minidl.distributed.start({}): pass"


@needs_mpi
def test_the_mpiexec_of_another_library_is_refused():
    message = python(START.format(""), OMPI_COMM_WORLD_SIZE="3")
    assert re.search(r"mpiexec started 3 processes, but each sees 1: it is not the mpiexec of .* MPICH", message)


def test_srun_without_mpi_is_refused():
    message = python(START.format(""), SLURM_STEP_NUM_TASKS="4")
    assert "srun started 4 processes, but did not tell them how to connect; pass --mpi=pmi2 to srun" in message


def test_what_srun_started_as_mpiexec_does_is_taken():
    """As with --mpi=pmi2, and in the processes of an mpiexec that was itself started by srun."""
    code = "from minidl.distributed import launched_processes\nraise SystemExit(f'{launched_processes()} processes')"
    assert python(code, SLURM_STEP_NUM_TASKS="4", PMI_SIZE="3") == "3 processes"


def test_without_mpi4py_the_error_says_what_to_install():
    code = "import importlib.util as util\nutil.find_spec = lambda name: None\n" + START.format("")
    assert 'several processes need mpi4py: pip install "minidl[mpi]"' in python(code, PMI_SIZE="2")


def test_too_few_processes_are_refused():
    with (
        pytest.raises(RuntimeError, match="expected 4 processes, got 1; launch with: mpiexec -n 4 python"),
        start(processes=4),
    ):
        pass


@pytest.mark.parametrize(("options", "got"), [({"device": "cuda:1"}, "got 'cuda:1'"), ({"timeout": 0}, "got 0")])
def test_bad_arguments_are_refused(options, got):
    with pytest.raises(ValueError, match=got), start(**options):
        pass


def test_without_mpiexec_there_is_a_single_process_whose_errors_are_its_own():
    with pytest.raises(KeyError, match="mine"), start() as communicator:
        assert isinstance(communicator, SingleProcess) and (communicator.rank, communicator.size) == (0, 1)
        raise KeyError("mine")


def test_no_launcher_is_around_these_tests():
    assert not {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE"} & os.environ.keys()
