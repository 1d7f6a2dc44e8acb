"""A web server for files that are downloaded."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Return a function that serves a folder on the loopback interface, and returns its URL."""
    with ExitStack() as at_end:

        def start(folder: Path) -> str:
            handler = partial(QuietHandler, directory=str(folder))
            server = at_end.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            at_end.callback(thread.join, timeout=10)
            at_end.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start
