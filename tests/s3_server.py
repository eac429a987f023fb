"""A real S3 server in a process of its own (moto), a proxy before it that makes trouble, and a plain web server.

All of them listen on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers import wait_for

SECRET = "SHHHsecretSHHH"  # noqa: S105 - of a server that lives as long as the tests
KEY = "AKIDidentityAKID"


class S3Server:
    """moto's S3 server on a port that it chose itself; `url` is its address."""

    def __init__(self) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=subprocess.DEVNULL,
            stderr=self.said,
        )

        def address() -> str | None:
            # at a place of its own: the process writes where this file stands
            found = re.search(rb"Running on (http://127\.0\.0\.1:\d+)\n", os.pread(self.said.fileno(), 1 << 16, 0))
            return None if found is None else found[1].decode()

        self.url: str = wait_for(address, "an answer of the S3 server", process=self.process)

    def make_bucket(self, name: str) -> None:
        """A new, empty bucket."""
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")  # noqa: S310 - our own server
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(30)
        self.said.close()


def environment(url: str, **more: str) -> dict[str, str]:
    """The variables that lead to the server at `url`; requests are tried quickly."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "TILELAB_REMOTE_TIMEOUT": "3",
        **more,
    }


Fault = str | None
"""``503``, ``403``, ``301``: that answer; ``stall``: none, for longer than clients wait; ``cut``: half of the body;
``drop``: the connection is closed at once; None: as it should be."""


class TroubleProxy:
    """Hands requests on to `upstream`, but for those that `fault` finds a trouble for.

    seen: (method, path, range, fault) of every request.
    """

    def __init__(
        self, upstream: str, fault: Callable[[str, str, int], Fault] = lambda method, path, number: None
    ) -> None:
        self.fault = fault
        self.seen: list[tuple[str, str, str, Fault]] = []
        self.stall_seconds = 4.0
        host = upstream.removeprefix("http://")
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path, len(proxy.seen))
                proxy.seen.append((self.command, self.path, self.headers.get("Range") or "", fault))
                if fault == "drop":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if fault == "stall":
                    time.sleep(proxy.stall_seconds)
                    self.close_connection = True
                    return
                if fault is not None and fault.isdecimal():
                    code = {"503": "SlowDown", "403": "AccessDenied", "301": "PermanentRedirect"}.get(fault, "Error")
                    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                    self.send_response(int(fault))
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(text)
                    return
                upstream = http.client.HTTPConnection(host, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away in the middle, as ours is made to


class _Files(http.server.SimpleHTTPRequestHandler):
    """Files with byte ranges, for those who know the password or the signature, if one is set."""

    protocol_version = "HTTP/1.1"
    authorization: str | None = None
    signature: str | None = None
    seen: list[tuple[str, str, str]]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.serve(body=True)

    def do_HEAD(self) -> None:
        self.serve(body=False)

    def serve(self, *, body: bool) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Range") or ""))
        path = Path(self.translate_path(self.path))
        if self.authorization is not None and self.headers.get("Authorization") != self.authorization:
            self.reply(401, b"", body=body)
        elif self.signature is not None and f"sig={self.signature}" not in self.path:
            self.reply(403, b"", body=body)
        elif not path.is_file():
            self.reply(404, b"", body=body)
        else:
            data = path.read_bytes()
            size = len(data)
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
            if match is None:
                self.reply(200, data, body=body)
                return
            first, last = match[1], match[2]
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            self.reply(206, data[start:stop], body=body, extent=f"bytes {start}-{stop - 1}/{size}")

    def reply(self, status: int, data: bytes, *, body: bool, extent: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        if extent is not None:
            self.send_header("Content-Range", extent)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextlib.contextmanager
def web_server(
    folder: Path, authorization: str | None = None, signature: str | None = None
) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Serve a folder; yields the address, and (method, path, range) of what was asked."""
    seen: list[tuple[str, str, str]] = []
    kind = type("Files", (_Files,), {"seen": seen, "authorization": authorization, "signature": signature})
    server = _Server(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
