"""Web servers on this machine that do what servers should not do."""

import http.server
import re
import ssl
import threading
import time
from pathlib import Path

CERTIFICATE = Path(__file__).with_name("localhost.pem")


class Server(http.server.ThreadingHTTPServer):
    """A server for one file. Each request is answered by `answer(handler)`, and its Range header is in `ranges`."""

    daemon_threads = True

    def __init__(self, content, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.answer, self.ranges, self.closing = content, answer, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/file"

    def encrypt(self):
        """Make it an https server, with a certificate that nobody trusts unless SSL_CERT_FILE names it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://localhost:{self.server_port}/file"

    def handle_error(self, *_):
        """The client may leave at any time."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        self.server.answer(self)

    def log_message(self, *_):
        pass

    def head(self, status, **headers):
        """Send the status and headers; Content_Range is the header Content-Range."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def trickle(self, content, pause=0.02):
        """Send a byte at a time until the server closes."""
        for byte in content:
            if self.server.closing.wait(pause):
                return
            self.wfile.write(bytes([byte]))


class Servers:
    """Starts servers, and stops all of them at the end of a `with` block."""

    def __init__(self):
        self.running = []

    def __call__(self, content, answer, encrypted=False):
        server = Server(content, answer)
        if encrypted:
            server.encrypt()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.running.append((server, thread))
        return server

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server, thread in self.running:
            server.closing.set()
            server.shutdown()
            thread.join()
            server.server_close()


def begin_of(handler):
    """The first byte that the client asks for."""
    return int(re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "bytes=0-")[1])


def good(handler):
    """The answer of a good server: the range that was asked for."""
    content, begin = handler.server.content, begin_of(handler)
    rest = content[begin:]
    if handler.headers["Range"]:
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        handler.head(206, Content_Length=len(rest), Content_Range=span)
    else:
        handler.head(200, Content_Length=len(rest))
    handler.wfile.write(rest)


def without_ranges(handler):
    """The whole file, whatever is asked for."""
    handler.head(200, Content_Length=len(handler.server.content))
    handler.wfile.write(handler.server.content)


def refuses_ranges(handler):
    """416 Range Not Satisfiable for every range."""
    if handler.headers["Range"]:
        handler.head(416, Content_Length=0)
    else:
        good(handler)


def without_length(handler):
    """The whole file, without saying how long it is."""
    handler.head(200)
    handler.wfile.write(handler.server.content)


def endless(handler):
    """The file, and then zeros until the client leaves."""
    handler.head(200)
    handler.wfile.write(handler.server.content)
    while not handler.server.closing.is_set():
        handler.wfile.write(bytes(10_000))


def announces(length):
    """The whole file, with this Content-Length."""

    def answer(handler):
        handler.head(200, Content_Length=length)
        handler.wfile.write(handler.server.content)

    return answer


def head_of_range(handler):
    """Send the headers for the range that is asked for. Return the whole file, and where the range begins."""
    content, begin = handler.server.content, begin_of(handler)
    if begin:
        handler.head(206, Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}")
    else:
        handler.head(200, Content_Length=len(content))
    return content, begin


def cut_after(count):
    """The first `count` bytes of what is asked for; then the connection is closed."""

    def answer(handler):
        content, begin = head_of_range(handler)
        handler.wfile.write(content[begin : begin + count])

    return answer


def stalls_after(count):
    """The first `count` bytes, then nothing more, while the connection stays open."""

    def answer(handler):
        cut_after(count)(handler)
        handler.server.closing.wait(30)

    return answer


def silent(handler):
    """Nothing, not even headers."""
    handler.server.closing.wait(30)


def trickled_headers(handler):
    """Headers, a byte at a time."""
    handler.trickle(b"HTTP/1.0 200 OK\r\nX: " + b"x" * 1000)


def trickled_body(handler):
    """The file, a byte at a time."""
    handler.head(200, Content_Length=len(handler.server.content))
    handler.trickle(handler.server.content)


def steady(speed):
    """The range that is asked for, at `speed` bytes per second."""

    def answer(handler):
        content, begin = head_of_range(handler)
        start = time.monotonic()
        for position in range(begin, len(content), 100):
            if handler.server.closing.wait(max(0, start + (position - begin) / speed - time.monotonic())):
                return
            handler.wfile.write(content[position : position + 100])

    return answer


def error(status):
    """An error page."""

    def answer(handler):
        handler.send_error(status)

    return answer


def redirects_to(address):
    """302 Found."""

    def answer(handler):
        handler.head(302, Location=address, Content_Length=0)

    return answer


def wrong_range(span):
    """206 Partial Content with this Content-Range."""

    def answer(handler):
        handler.head(206, Content_Range=span)
        handler.wfile.write(handler.server.content)

    return answer
