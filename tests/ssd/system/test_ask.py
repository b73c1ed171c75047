"""Checks whether a file can be downloaded, with local servers."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ssd.system.download import DownloadError, ask


@pytest.fixture
def server():
    """A server that answers with the status code in the path; 302 redirects to 200. `asked` lists the requested ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = int(self.path.strip("/"))
            running.asked.append(self.headers.get("Range"))
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "/200")
            self.send_header("Content-Length", "0" if code == 302 else str(10**9))  # no body is sent
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.mark.parametrize("code", [200, 206, 302])
def test_available_file(server, code):
    ask(f"http://127.0.0.1:{server.server_port}/{code}", 5)
    assert set(server.asked) == {"bytes=0-0"}


@pytest.mark.parametrize("code", [403, 404, 407, 503])
def test_http_error(server, code):
    url = f"http://127.0.0.1:{server.server_port}/{code}"
    with pytest.raises(DownloadError, match=f"^{url}: "):
        ask(url, 5)


def test_silent_server():
    began = time.monotonic()
    reasons = r"no answer within 0\.3 seconds|timed out"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match=reasons):
        ask(f"http://127.0.0.1:{silent.getsockname()[1]}/x", 0.3)
    assert time.monotonic() - began < 3
