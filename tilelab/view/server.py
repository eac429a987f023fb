"""A server for one page on this machine: neuroglancer's client, its state, and the chunks of a scene's layers.

Everything lies under a token that only whoever is given the link knows; there is no path into the file system, only
numbers of layers, levels and chunks.  Requests that name another host (DNS rebinding) are refused.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tilelab.errors import InputError, OutputError, TilelabError
from tilelab.machine.version import __version__
from tilelab.text import install_hint
from tilelab.view.layers import Scene, is_state, viewer_state
from tilelab.view.pyramid import asker_gone

_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_TYPES = {".css": "text/css", ".js": "text/javascript", ".html": "text/html", ".wasm": "application/wasm"}
_MOST_STATE = 4 << 20
_MOST_TABS = 64
_QUIET_SECONDS = 0.7
_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'"
)
_CHUNK = re.compile(r"(\d{1,4})/(\d{1,3})/(\d{1,9})/(\d{1,9})/(\d{1,9})")
_ARRAY = re.compile(r"(\d{1,4})/(\d{1,3})/\.zarray")
_GROUP = re.compile(r"(\d{1,4})/(\.zattrs|\.zgroup|names/info)")


class ViewServer(ThreadingHTTPServer):
    """Serves a scene until it is closed; `start` in a thread of its own.

    Attributes:
        token: that every address begins with.
        state: of the page, as any tab last told it.
        changed: called with every state of the page.
        version: of what is being written; see `renew`.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, scene: Scene, port: int = 0, *, state: dict[str, Any] | None = None, **view: Any) -> None:
        self.scene, self.token = scene, secrets.token_urlsafe(24)
        self.state: dict[str, Any] | None = None
        self.told = self.version = 0
        self.changed: Callable[[dict[str, Any]], None] = lambda state: None  # noqa: ARG005
        self._first, self._view = state, view
        self._tabs: OrderedDict[str, tuple[dict[str, Any], float]] = OrderedDict()  # what each told, and when
        self._news = threading.Condition()
        self.closing = False
        self.client = client_folder()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise OutputError(
                f"port {port} cannot be used ({error.strerror or error}): choose another --port"
            ) from error

    @property
    def url(self) -> str:
        """The link to the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/v/page/"

    def start(self) -> None:
        """Answer in a thread."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        with self._news:
            self.closing = True
            self._news.notify_all()
        self.shutdown()
        self.server_close()

    def begin_state(self, base: str, tab: str = "") -> dict[str, Any]:
        """The state a page begins with: what that tab last told, else what any did, or a new one."""
        from tilelab.view.layers import keep_view

        fresh = viewer_state(self.scene, base, version=self.version, **self._view)
        told = self._tabs.get(tab)
        kept = told[0] if told is not None else self.state or self._first
        return fresh if kept is None else keep_view(fresh, kept)

    def renew(self, scene: Scene | None = None) -> None:
        """Have pages ask again for what is being written, or show another scene."""
        with self._news:
            self.scene = self.scene if scene is None else scene
            self.version += 1

    def tell(self, state: dict[str, Any], tab: str = "") -> int:
        """Keep what a tab of the page shows now."""
        with self._news:
            self.state = state
            self._tabs[tab] = (state, time.monotonic())
            self._tabs.move_to_end(tab)
            while len(self._tabs) > _MOST_TABS:
                self._tabs.popitem(last=False)
            self.told += 1
        self.changed(state)
        return self.told

    def is_quiet(self, tab: str) -> bool:
        """Whether a tab shows what it last told: of one that moves, a state that it is given takes back some of it."""
        told = self._tabs.get(tab)
        return told is None or time.monotonic() - told[1] > _QUIET_SECONDS

    def wait(self, seconds: float) -> bool:
        """Whether it is still open after that time."""
        with self._news:
            self._news.wait_for(lambda: self.closing, seconds)
        return not self.closing

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that went away is no error."""


def client_folder() -> Path:
    """Where neuroglancer's client is.

    Raises:
        InputError: it is not installed.
    """
    found = find_spec("neuroglancer")  # nothing of it runs here
    for place in (found.submodule_search_locations or ()) if found else ():
        if (client := Path(place) / "static" / "client").joinpath("index.html").is_file():
            return client
    raise InputError(f"the page is neuroglancer's: {install_hint('view')}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"tilelab/{__version__}"
    sys_version = ""
    server: ViewServer
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if (path := self._path()) is None:
            return
        with contextlib.suppress(ConnectionError):
            if path.startswith("v/page/"):
                self._client(path.removeprefix("v/page/"))
            elif path == "events/page":
                self._events()
            elif found := re.fullmatch(r"data(?:\.\d{1,9})?/(.*)", path):
                self._data(found[1])
            else:
                self._refuse(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        if (path := self._path()) is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_STATE:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(int(length))
        told, tab = None, ""
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            said = json.loads(body)
            told, tab = said["s"], str(said.get("c", ""))
        if path != "state/page" or not is_state(told):
            self._refuse(HTTPStatus.BAD_REQUEST if path == "state/page" else HTTPStatus.NOT_FOUND)
            return
        self._json({"g": f"page/{self.server.tell(told, tab)}"})

    def _path(self) -> str | None:
        """What is asked for, below the token; None when the request was refused."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        lead, _, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        if host.lower() not in _HOSTS:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not secrets.compare_digest(lead.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            return path
        return None

    def _client(self, name: str) -> None:
        name = name or "index.html"
        if not re.fullmatch(r"[a-z0-9][A-Za-z0-9_.-]*\.(?:js|css|wasm|html)", name):
            return self._refuse(HTTPStatus.NOT_FOUND)
        file = self.server.client / name
        if not file.is_file():
            return self._refuse(HTTPStatus.NOT_FOUND)
        return self._send(file.read_bytes(), _TYPES[file.suffix], cache=name != "index.html")

    def _events(self) -> None:
        """Tell the page its state, and again when it was renewed; when the line breaks, the page is gone."""
        base = f"http://{self.headers['Host']}/{self.server.token}/data"
        tab = parse_qs(urlsplit(self.path).query).get("c", [""])[0]
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        version = self.server.version
        self._tell("c", {}, "begin/c")
        self._tell("s", self.server.begin_state(base, tab), "begin/s")
        while self.server.wait(1.0) and not self._gone():
            if version != self.server.version and self.server.is_quiet(tab):
                version = self.server.version
                self._tell("s", self.server.begin_state(base, tab), f"begin/{version}")

    def _tell(self, key: str, state: dict[str, Any], generation: str) -> None:
        self.wfile.write(f"data: {json.dumps({'k': key, 's': state, 'g': generation})}\n\n".encode())
        self.wfile.flush()

    def _gone(self) -> bool:
        """Whether whoever asked has hung up."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _data(self, path: str) -> None:
        scene = self.server.scene
        try:
            if found := _CHUNK.fullmatch(path):
                asker_gone.set(self._gone)
                number, level, z, y, x = map(int, found.groups())
                pyramid = scene.layers[number].pyramid
                block = pyramid.read_chunk(level, (z, y, x))
                little = block.astype(block.dtype.newbyteorder("<"), copy=False)
                return self._send(little.tobytes(), "application/octet-stream", cache=pyramid.lasting)
            if found := _ARRAY.fullmatch(path):
                return self._json(scene.layers[int(found[1])].zarr_array(int(found[2])))
            if found := _GROUP.fullmatch(path):
                layer = scene.layers[int(found[1])]
                documents = {
                    ".zattrs": lambda: layer.zarr_attributes(scene.units),
                    ".zgroup": lambda: {"zarr_format": 2},
                    "names/info": layer.segment_properties,
                }
                return self._json(documents[found[2]]())
        except IndexError:
            pass
        except ConnectionError:
            self.close_connection = True
            return None
        except (TilelabError, OSError) as error:
            return self._send(str(error).encode(), "text/plain; charset=utf-8", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        return self._refuse(HTTPStatus.NOT_FOUND)

    def _json(self, document: Any) -> None:
        self._send(json.dumps(document).encode(), "application/json")

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection |= self.command == "POST"  # its body, unread, would be taken for the next request
        self._send(status.phrase.encode(), "text/plain", status=status)

    def _send(self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, cache: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Cache-Control", "private, max-age=3600" if cache else "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the token would stand in it."""
