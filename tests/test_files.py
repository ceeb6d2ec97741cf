"""Files are whole or not there, also where several processes and threads write them, and those of killed ones go."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minidl.system import files
from minidl.system.files import link_whole, read_text, write_whole

# Writes a file, and when all of it is in the part but not yet under its name: says so, and waits.
WRITER = """
import os, sys
from pathlib import Path
from minidl.system.files import link_whole, write_whole

fsync = os.fsync

def wait(descriptor):
    os.fsync = fsync
    print("waiting", flush=True)
    sys.stdin.readline()

os.fsync = wait
write_whole(Path(sys.argv[1]), b"of the other process")
"""


class Writer:
    """Another process that has written the part."""

    def __init__(self, path: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "waiting\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def go_on(self) -> None:
        self.process.communicate("\n", timeout=600)
        assert self.process.returncode == 0


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


@pytest.mark.parametrize("times", [1, 3])
def test_the_parts_of_killed_writers_go_with_the_next_write(tmp_path, times):
    path = tmp_path / "checkpoint.safetensors"
    writers = [Writer(path) for _ in range(times)]
    for writer in writers:
        writer.kill()
    assert len(parts(tmp_path)) == times and not path.exists()
    write_whole(path, b"mine")
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"mine"


def test_the_part_of_a_living_writer_stays(tmp_path):
    path = tmp_path / "checkpoint"
    writer = Writer(path)
    (part,) = parts(tmp_path)
    write_whole(path, b"mine")
    assert parts(tmp_path) == [part] and path.read_bytes() == b"mine"
    writer.go_on()
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"of the other process"


def test_a_part_with_the_number_of_a_process_as_once_written_goes_too(tmp_path):
    (tmp_path / "a.1234.part").touch()
    write_whole(tmp_path / "a", b"mine")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_what_is_no_part_of_this_file_stays(tmp_path):
    names = ["b.1234.part", "a.part", "a.txt", "a.b.1234.part", "a.backup.part", "aa.1234.part", "a.1234.parts"]
    for name in names:
        (tmp_path / name).write_text("keep")
    (tmp_path / "a.99.part").mkdir()
    (tmp_path / "a.77.part").symlink_to(tmp_path / "b.1234.part")
    write_whole(tmp_path / "a", b"mine")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([*names, "a", "a.99.part", "a.77.part"])
    assert all((tmp_path / name).read_text() == "keep" for name in names)


def test_threads_that_write_one_file_never_fail_nor_tear_it(tmp_path):
    path, errors = tmp_path / "checkpoint", []
    contents = [bytes([number]) * 100_000 for number in range(4)]
    write_whole(path, contents[0])
    torn, done = [], threading.Event()

    def write(content):
        try:
            for _ in range(300):
                write_whole(path, content)
        except OSError as error:
            errors.append(error)

    def read():
        while not done.is_set():
            if path.read_bytes() not in contents:
                torn.append(True)

    reader, *writers = (
        threading.Thread(target=read),
        *(threading.Thread(target=write, args=[c]) for c in contents[:2]),
    )
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert (errors, torn) == ([], [])
    assert [*tmp_path.iterdir()] == [path]


def test_a_part_that_is_taken_for_abandoned_before_it_is_locked_is_written_again(tmp_path, monkeypatch):
    """Another writer may look between the moments when a part is made and when it is locked."""
    lock, taken = files._lock, []

    def lock_late(file, wait):
        if wait and not taken:
            taken.append(file.name)
            Path(file.name).unlink()
        return lock(file, wait)

    monkeypatch.setattr(files, "_lock", lock_late)
    write_whole(tmp_path / "a", b"mine")
    assert len(taken) == 1 and (tmp_path / "a").read_bytes() == b"mine" and not parts(tmp_path)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def fail(*_):
    raise OSError("not here")


@pytest.mark.parametrize("how", ["no fcntl", "no locks"])
def test_without_locks_files_are_written_and_no_part_is_removed(tmp_path, how, monkeypatch):
    """On Windows, and on file systems that know no locks, nobody can tell which part is abandoned."""
    if how == "no fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", fail)
    (tmp_path / "a.1234.part").touch()
    write_whole(tmp_path / "a", b"mine")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "a.1234.part"]
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_the_folder_is_on_disk_too(tmp_path, monkeypatch):
    """After a power failure the new name is there, and not the old file."""
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode) and (tmp_path / "a").exists())
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", note)
    write_whole(tmp_path / "a", b"mine")
    assert synced == [False, True]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="not here"):
        write_whole(tmp_path / "a", b"new")
    assert [*tmp_path.iterdir()] == [tmp_path / "a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'a'}'"):
        write_whole(tmp_path / "a", b"new")


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "names.txt").write_text("n01 cat", encoding="utf-8-sig")
    assert read_text(tmp_path / "names.txt") == "n01 cat"


# -- a second name -----------------------------------------------------------------------------------------------------


def test_a_second_name_replaces_the_file_that_had_it_and_is_no_copy(tmp_path):
    write_whole(tmp_path / "old", b"old")
    write_whole(tmp_path / "new", b"new")
    for _ in range(2):  # the second time it has the name already
        link_whole(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old").read_bytes() == b"new"
        assert (tmp_path / "old").samefile(tmp_path / "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    write_whole(tmp_path / "new", b"newer")
    assert (tmp_path / "old").read_bytes() == b"new"


def test_the_part_of_a_killed_writer_goes_with_the_next_second_name(tmp_path):
    write_whole(tmp_path / "new", b"new")
    (tmp_path / f"old.{'0' * 16}.part").touch()
    link_whole(tmp_path / "new", tmp_path / "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_the_content_is_the_pieces_one_after_the_other(tmp_path):
    write_whole(tmp_path / "a", b"one ", memoryview(b"two "), b"three")
    assert (tmp_path / "a").read_bytes() == b"one two three"


def test_the_folder_is_flushed_to_the_disk_after_a_second_name(tmp_path, monkeypatch):
    """Else a power cut could bring the old file back."""
    write_whole(tmp_path / "new", b"")
    fsync, flushed = os.fsync, []

    def note(descriptor):
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode) and (tmp_path / "a").exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    link_whole(tmp_path / "new", tmp_path / "a")
    assert flushed == [True]


# -- text that a user names --------------------------------------------------------------------------------------------


def test_text_is_read_and_what_is_no_text_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("tench, poisson \u00e9pais\n", encoding="utf-8")
    assert read_text(path) == read_text(str(path)) == "tench, poisson \u00e9pais\n"
    path.write_bytes(b"tench\xff")
    with pytest.raises(ValueError, match=r"^expected a text file in UTF-8, but .*/names\.txt is not: see byte 5$"):
        read_text(path)
    with pytest.raises(ValueError, match=r"names\.txt is longer"):
        read_text(path, most_bytes=5)
    with pytest.raises(ValueError, match=f"expected a text file, got {tmp_path}, which is a folder"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_text(tmp_path / "missing")


def test_what_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(ValueError, match=f"expected a text file, got {path}, which is no file"):
            read_text(path)
