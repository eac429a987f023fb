"""Models by address: ``https://...`` and ``hf://OWNER/REPOSITORY[@REVISION]/FILE``, fetched once and kept.

``#sha256=...`` behind an address pins what it must lead to; what came without one is said, with its digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from tilelab.assumptions import Assumption
from tilelab.engines.packages.kept import digest_of, kept
from tilelab.errors import ModelError
from tilelab.machine.version import __version__

_ADDRESS = re.compile(r"(https?|hf):/+")
_HUB = "https://huggingface.co"
_SECONDS = 60.0
_CODE = (".engine", ".plan", ".pt2")  # machine code


def is_address(model: object) -> bool:
    """Whether a model is named by an address."""
    return isinstance(model, str | Path) and _ADDRESS.match(str(model)) is not None


def fetch_model(address: str) -> tuple[Path, tuple[str, ...], tuple[Assumption, ...]]:
    """The file behind an address, where it is kept; a line for the user, and what had to be believed.

    Raises:
        ModelError: nothing is there, it is not what was pinned, or a pin is needed and missing.
    """
    url, pin = _read(address)
    parts = urlsplit(url)
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    name = unquote(parts.path).replace("\\", "/").rsplit("/", 1)[-1]  # a %2F is a slash, too: nothing lands elsewhere
    if name in ("", ".", ".."):
        raise ModelError(f"{shown} names no file: give the address of one")
    if not pin and (url.startswith("http:") or name.lower().endswith(_CODE)):
        why = "is not encrypted" if url.startswith("http:") else "leads to machine code"
        raise ModelError(f"{shown} {why}: say what it must be, with #sha256=... behind the address")
    key = pin or hashlib.sha256(f"address {url}".encode()).hexdigest()
    folder, made = kept(key, lambda scratch: _download(url, shown, scratch / name, pin))
    path = folder / name
    if not path.is_file():  # the same content under another name
        path = next(folder.iterdir())
    lines = (f"{shown} was fetched to {path}" + ("" if made else ", as before"),)
    if pin:
        return path, lines, ()
    believed = Assumption(
        what=f"whether {shown} is the file that was meant",
        taken=f"it is (sha256 {digest_of(path)})",
        because="nothing pins it",
        flag="#sha256=... behind the address",
    )
    return path, lines, (believed,)


def _read(address: str) -> tuple[str, str]:
    """An address of the web, and what it is pinned to."""
    url, _, fragment = _ADDRESS.sub(r"\1://", address, count=1).partition("#")
    pin = fragment.removeprefix("sha256=").lower()
    if fragment and not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise ModelError(f"#{fragment} pins nothing: write #sha256= and 64 hexadecimal digits")
    if not url.startswith("hf:"):
        return url, pin
    match = re.fullmatch(r"hf://([^/@]+)/([^/@]+)(?:@([^/]+))?/(.+)", url)
    if match is None:
        raise ModelError(f"{url} is not hf://OWNER/REPOSITORY[@REVISION]/FILE")
    owner, repository, revision, file = match.groups()
    base = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    return f"{base}/{owner}/{repository}/resolve/{revision or 'main'}/{file}", pin


def _quoted(parts: SplitResult) -> str:
    """An address as it is asked for: what is no ASCII, or a space, is escaped; escapes stay."""
    kept = "/%:@!$&'()*+,;=~"
    return urlunsplit(parts._replace(path=quote(parts.path, kept), query=quote(parts.query, kept + "?")))


def _download(url: str, shown: str, path: Path, pin: str) -> None:
    import http.client  # takes longer to import than to find a model on the disk
    import urllib.error
    import urllib.request

    quoted = _quoted(urlsplit(url))
    request = urllib.request.Request(quoted, headers={"User-Agent": f"tilelab/{__version__}"})  # noqa: S310 - see `_ADDRESS`
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer, path.open("wb") as file:  # noqa: S310
            if not pin and not answer.url.startswith("https:"):
                raise ModelError(f"{shown} leads to an address that is not encrypted: pin it with #sha256=...")
            shutil.copyfileobj(answer, file)
            stated = answer.headers.get("Content-Length", "")
            if stated.isdecimal() and file.tell() != int(stated):  # Python says nothing of it
                raise ModelError(f"{shown} broke off after {file.tell()} of {stated} bytes: run the same command again")
    except urllib.error.HTTPError as error:
        raise ModelError(f"{shown} cannot be fetched: {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(f"{shown} cannot be fetched: {reason}: fetch it by other means and give the file") from None
    if pin and digest_of(path) != pin:
        raise ModelError(f"{shown} is not what was pinned: its sha256 is {digest_of(path)}, not {pin}")
