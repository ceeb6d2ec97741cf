import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from minidl.data import download as module
from minidl.data.download import RemoteFile, download
from tests.data import servers
from tests.data.servers import Servers, good

CONTENT = np.random.default_rng(0).bytes(20_000)
OTHER = CONTENT[::-1]
NOBODY = "http://127.0.0.1:9/file"  # a port at which nothing listens


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Servers() as start:
        yield lambda answer, content=CONTENT, encrypted=False: start(content, answer, encrypted)


def remote(*sources):
    return RemoteFile("file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), tuple(map(address, sources)))


def address(source):
    return source if isinstance(source, str) else source.url


def fetch(folder, *sources, patience=10.0, speeds=(1000, 100)):
    """Download from these servers; the file must be complete, and nothing else in the folder."""
    download(remote(*sources), folder, patience, speeds)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == CONTENT


def fails(folder, *sources, patience=10.0, speeds=(1000, 100)):
    """The message of the error of a download that fails."""
    with pytest.raises(ConnectionError) as caught:
        download(remote(*sources), folder, patience, speeds)
    assert not (folder / "file").exists()
    return str(caught.value)


def keep(folder, content):
    (folder / "file.partial").write_bytes(content)


def kept(folder):
    return (folder / "file.partial").read_bytes()


# A good server


def test_a_file_is_downloaded_into_a_new_folder(tmp_path, serve):
    server = serve(good)
    fetch(tmp_path / "new/deep", server)
    assert server.ranges == [None]


def test_a_file_that_is_there_is_not_downloaded(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    download(remote(NOBODY), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_redirection_is_followed_and_keeps_the_range(tmp_path, serve):
    last = serve(good)
    keep(tmp_path, CONTENT[:7000])
    fetch(tmp_path, serve(servers.redirects_to(last.url)))
    assert last.ranges == ["bytes=7000-"]


# Going on


@pytest.mark.parametrize("count", [1, 7000, 19_999])
def test_a_download_continues_where_an_earlier_one_stopped(tmp_path, serve, count):
    keep(tmp_path, CONTENT[:count])
    server = serve(good)
    fetch(tmp_path, server)
    assert server.ranges == [f"bytes={count}-"]


def test_another_source_continues_where_one_was_cut_off(tmp_path, serve):
    first, second = serve(servers.cut_after(7000)), serve(good)
    fetch(tmp_path, first, second)
    assert (first.ranges, second.ranges) == ([None], ["bytes=7000-"])


def test_a_source_that_is_cut_off_is_asked_again(tmp_path, serve):
    server = serve(servers.cut_after(12_000))
    fetch(tmp_path, server)
    assert server.ranges == [None, "bytes=12000-"]


def test_what_has_arrived_is_kept_for_the_next_run(tmp_path, serve):
    message = fails(tmp_path, serve(servers.cut_after(3000)), speeds=(1000,))
    assert "connection closed, 17,000 bytes are missing" in message
    assert f"3,000 of 20,000 bytes are in {tmp_path}/file.partial, and the next run continues from there" in message
    assert kept(tmp_path) == CONTENT[:3000]
    fetch(tmp_path, serve(good))


def test_a_complete_download_only_gets_its_name(tmp_path):
    keep(tmp_path, CONTENT)
    fetch(tmp_path, NOBODY)


@pytest.mark.parametrize("answer", [servers.without_ranges, servers.refuses_ranges])
def test_a_server_without_ranges_sends_everything_again(tmp_path, serve, answer):
    keep(tmp_path, CONTENT[:7000])
    server = serve(answer)
    fetch(tmp_path, server)
    assert server.ranges[0] == "bytes=7000-"


def test_a_server_without_ranges_takes_nothing_away(tmp_path, serve):
    keep(tmp_path, CONTENT[:7000])

    def answer(handler):
        handler.head(200)
        handler.wfile.write(CONTENT[:2000])

    assert "18,000 bytes are missing" in fails(tmp_path, serve(answer), speeds=(1000,))
    assert kept(tmp_path) == CONTENT[:7000]


@pytest.mark.parametrize("count", [5000, 20_000, 30_000])
def test_the_beginning_of_another_file_is_downloaded_again(tmp_path, serve, count):
    keep(tmp_path, (OTHER + OTHER)[:count])
    server = serve(good)
    fetch(tmp_path, server)
    assert server.ranges == ([f"bytes={count}-"] if count < 20_000 else []) + [None]


def test_a_server_without_ranges_that_has_another_file_is_asked_once(tmp_path, serve):
    keep(tmp_path, CONTENT[:7000])
    wrong = serve(servers.without_ranges, OTHER)
    assert "has another file: SHA-256" in fails(tmp_path, wrong)
    assert wrong.ranges == ["bytes=7000-"]


def test_a_source_is_not_blamed_for_the_bytes_of_another(tmp_path, serve):
    wrong, right = serve(servers.cut_after(5000), OTHER), serve(good)
    fetch(tmp_path, wrong, right)
    assert right.ranges == ["bytes=5000-", None]


# Wrong answers


@pytest.mark.parametrize("answer", [good, servers.without_length, servers.endless])
def test_another_file_is_left_for_the_next_source(tmp_path, serve, answer):
    fetch(tmp_path, serve(answer, OTHER), serve(good))


def test_another_file_everywhere_is_an_error_that_leaves_nothing(tmp_path, serve):
    message = fails(tmp_path / "new/deep", serve(good, OTHER))
    expected, got = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(OTHER).hexdigest()
    assert f"has another file: SHA-256 expected {expected}, got {got}; nothing is kept" in message
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("announced", "got"), [(20_001, "20,001"), (10**15, "1,000,000,000,000,000"), (300, "300")])
def test_another_length_is_refused_before_anything_is_read(tmp_path, serve, announced, got):
    message = fails(tmp_path, serve(servers.announces(announced)))
    assert f"has another file: expected 20,000 bytes, got {got}; nothing is kept" in message


@pytest.mark.parametrize("length", ["abc", "", "-5"])
def test_a_length_that_is_no_number_does_no_harm(tmp_path, serve, length):
    fetch(tmp_path, serve(servers.announces(length)))


def test_no_more_than_the_file_is_read_from_a_server_without_an_end(tmp_path, serve):
    fetch(tmp_path, serve(servers.endless))


@pytest.mark.parametrize(
    "span", ["", "bytes 0-19999/20000", "bytes 7000-19999/20001", "bytes 7000-9999/20000", "bytes 7001-19999/20000"]
)
def test_another_range_is_refused(tmp_path, serve, span):
    keep(tmp_path, CONTENT[:7000])
    message = fails(tmp_path, serve(servers.wrong_range(span)))
    assert f"has another file: expected bytes 7000-19999/20000, got {span!r}" in message
    assert kept(tmp_path) == CONTENT[:7000]


def test_a_range_of_an_unknown_total_is_accepted(tmp_path, serve):
    keep(tmp_path, CONTENT[:7000])
    fetch(tmp_path, serve(servers.wrong_range("bytes 7000-19999/*"), CONTENT[7000:]))


@pytest.mark.parametrize("status", [403, 404, 416, 429, 500, 503])
def test_an_error_page_is_left_for_the_next_source(tmp_path, serve, status):
    broken = serve(servers.error(status))
    assert f"{urlsplit(broken.url).netloc}: HTTP {status} " in fails(tmp_path, broken)
    assert len(broken.ranges) == 1
    fetch(tmp_path, broken, serve(good))


def test_a_server_cannot_write_to_the_terminal_what_it_likes(tmp_path, serve, capsys):
    def answer(handler):
        handler.send_response(404, "\x1b[31mred" + "!" * 5000)
        handler.end_headers()

    message = fails(tmp_path, serve(answer)) + capsys.readouterr().err
    assert message.count("HTTP 404 ?[31mred!") == 2
    assert "\x1b" not in message and len(message) < 1500


def test_an_answer_without_content_is_an_error(tmp_path, serve):
    assert "HTTP 204" in fails(tmp_path, serve(lambda handler: handler.head(204)))


@pytest.mark.parametrize("line", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.0 200 OK\r\n" + b"x: y\r\n" * 200, b"\xff" * 70_000])
def test_what_is_not_http_is_an_error(tmp_path, serve, line):
    assert "cannot connect" in fails(tmp_path, serve(lambda handler: handler.wfile.write(line)))


def test_a_broken_chunk_is_an_error_that_keeps_what_came_before(tmp_path, serve):
    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Transfer_Encoding="chunked")
        handler.wfile.write(b"bb8\r\n" + CONTENT[:3000] + b"\r\nnonsense\r\n")

    assert "connection lost" in fails(tmp_path, serve(answer), speeds=(1000,))
    assert kept(tmp_path) == CONTENT[:3000]


# Slow servers


@pytest.mark.parametrize("answer", [servers.silent, servers.trickled_headers])
def test_a_server_that_does_not_answer_is_left_for_the_next_one(tmp_path, serve, answer):
    slow = serve(answer)
    assert f"{urlsplit(slow.url).netloc}: no data in 1.2 s; nothing is kept" in fails(tmp_path, slow, patience=1.2)
    fetch(tmp_path, slow, serve(good), patience=1.2)


@pytest.mark.parametrize("answer", [servers.stalls_after(3000), servers.trickled_body])
def test_a_server_that_becomes_slow_is_left_for_the_next_one(tmp_path, serve, answer):
    slow, fast = serve(answer), serve(good)
    fetch(tmp_path, slow, fast, patience=1.2, speeds=(20_000,))
    (asked,) = fast.ranges
    assert asked and asked != "bytes=0-"  # what the slow one has sent is kept


def test_a_server_that_is_fast_enough_may_take_longer_than_the_patience(tmp_path, serve):
    server = serve(servers.steady(10_000))  # 2 s
    fetch(tmp_path, server, patience=1.2, speeds=(1000,))
    assert server.ranges == [None]


def test_slow_sources_are_tried_again_with_a_lower_speed(tmp_path, serve, capsys):
    slower, slow = serve(servers.steady(2_000)), serve(servers.steady(20_000))
    fetch(tmp_path, slower, slow, patience=0.6, speeds=(200_000, 5_000))
    assert [len(server.ranges) for server in (slower, slow)] == [2, 2]
    assert capsys.readouterr().err.count("too slow: ") == 3  # one line for each time that a source was left


def test_a_download_ends_where_all_sources_stay_slow(tmp_path, serve):
    servers_ = [serve(servers.trickled_body) for _ in range(2)]
    message = fails(tmp_path, *servers_, patience=0.2, speeds=(20_000, 10_000))
    assert len(re.findall(r"too slow: 0\.[01] kB/s in the last 0\.2 s", message)) == 2  # 50 bytes per second
    assert 0 < len(kept(tmp_path)) < 100


# What is not encrypted


@pytest.mark.parametrize("address", ["http://example.invalid/file", "ftp://127.0.0.1/file", "file:///etc/passwd", "x"])
def test_other_addresses_than_https_are_refused(tmp_path, serve, address, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    assert f": is {address}, which is not encrypted: expected an https address" in fails(tmp_path, address)


@pytest.mark.parametrize("target", ["http://example.invalid/file", "http://127.0.0.1.example.invalid/", "//10.0.0.1/"])
def test_a_redirection_to_http_is_refused(tmp_path, serve, target):
    message = fails(tmp_path, serve(servers.redirects_to(target)))
    assert "redirects to http://" in message and "which is not encrypted: expected an https address" in message


@pytest.mark.parametrize("target", ["file:///etc/passwd", "data:,x", "ftp://127.0.0.1/"])
def test_a_redirection_to_something_else_is_refused(tmp_path, serve, target):
    assert "not " in fails(tmp_path, serve(servers.redirects_to(target)))


def test_https_works_with_a_certificate_that_is_trusted(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(servers.CERTIFICATE))
    last = serve(good, encrypted=True)
    keep(tmp_path, CONTENT[:7000])
    fetch(tmp_path, serve(servers.redirects_to(last.url), encrypted=True))
    assert last.ranges == ["bytes=7000-"]


def test_a_certificate_that_is_not_trusted_is_refused(tmp_path, serve):
    server = serve(good, encrypted=True)
    assert "cannot connect: [SSL: CERTIFICATE_VERIFY_FAILED]" in fails(tmp_path, server)
    assert server.ranges == []


def test_https_does_not_lead_back_to_http_even_on_this_machine(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(servers.CERTIFICATE))
    plain = serve(good)
    message = fails(tmp_path, serve(servers.redirects_to(plain.url), encrypted=True))
    assert f"redirects to {plain.url}, which is not encrypted: expected an https address" in message
    assert plain.ranges == []


def test_a_redirection_in_a_circle_ends(tmp_path, serve):
    server = serve(lambda handler: servers.redirects_to(server.url)(handler))
    assert "infinite loop" in fails(tmp_path, server)


# Interruptions


def test_without_a_network_the_error_has_all_reasons_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    message = fails(tmp_path / "new/deep", NOBODY, "http://localhost:9/file")
    assert message.count("cannot connect: ") == message.count("Connection refused") == 2
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_is_an_error_that_says_what_is_kept(tmp_path, serve, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("minidl.data.download._sha256", full)
    expected = rf"cannot write {tmp_path / 'file.partial'} \(No space left on device\); .* bytes are in .*\.partial"
    with pytest.raises(OSError, match=expected):
        fetch(tmp_path, serve(good))


def test_ctrl_c_keeps_what_has_arrived_and_says_so(tmp_path, serve, capsys):
    def answer(handler):
        handler.head(200, Content_Length=len(CONTENT))
        handler.wfile.write(CONTENT[:3000])
        while not (tmp_path / "file.partial").stat().st_size:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        download(remote(serve(answer)), tmp_path)
    assert kept(tmp_path) == CONTENT[:3000]
    said = f"download interrupted: 3,000 of 20,000 bytes are in {tmp_path}/file.partial, and the next run continues"
    assert said in capsys.readouterr().err
    server = serve(good)
    fetch(tmp_path, server)
    assert server.ranges == ["bytes=3000-"]


def test_a_process_that_is_killed_keeps_what_has_arrived(tmp_path, serve):
    slow = serve(servers.stalls_after(3000))
    program = f"""
import pathlib, minidl.data.download as d
d.download(d.RemoteFile("file", {len(CONTENT)}, "", ("{slow.url}",)), pathlib.Path({str(tmp_path)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "no_proxy": "*"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        try:
            while not (tmp_path / "file.partial").exists() or len(kept(tmp_path)) < 3000:
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.kill()
    fetch(tmp_path, serve(good))


def test_two_downloads_at_once_are_one(tmp_path, serve):
    server = serve(servers.steady(100_000))
    threads = [threading.Thread(target=download, args=(remote(server), tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path, serve):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "file.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"file\.partial"):
        download(remote(serve(good)), tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_full_disk_is_not_blamed_on_the_source(tmp_path, serve, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            raise OSError(28, "No space left on device")

    opened = module.open_exclusive
    monkeypatch.setattr(module, "open_exclusive", lambda path: Full(opened(path)))
    with pytest.raises(OSError, match="No space left on device"):
        download(remote(serve(good)), tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("answer", [servers.endless, servers.trickled_body, servers.silent])
def test_no_thread_stays_behind_although_the_server_stays(tmp_path, serve, answer):
    fails(tmp_path, serve(answer, OTHER), patience=0.2, speeds=(20_000,))
    deadline = time.monotonic() + 300
    while any(thread.name == "minidl download" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
