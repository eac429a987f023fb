"""Sizes and messages in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tilelab.errors import PlanError

_LONGEST = 300  # line of a library's message
# what torch says after what happened on a GPU
_ADVICE = re.compile(
    r"Search for `cuda|CUDA kernel errors might be|For debugging consider|Compile with `TORCH_USE|Device-side assertion"
)
_CPP_PLACE = re.compile(r"\s*/\S+\.(?:cc|cpp|cxx|h|hpp|cu|inc):\d+ [^()]*\([^()]*\)(?: const)?\s+")


def size_text(extent: Iterable[object]) -> str:
    """``512 x 512``."""
    return " x ".join(map(str, extent))


def sides_text(sides: Sequence[object]) -> str:
    """``512 x 512``, or with the axes where the order matters: ``512 x 1024 (y, x)``."""
    return size_text(sides) + (f" ({', '.join('zyx'[-len(sides) :])})" if len(set(sides)) > 1 else "")


def distinct(names: Iterable[str]) -> list[str]:
    """Names of files that are apart on every disk: one that was there, in whatever case, has a number behind it."""
    found: dict[str, str] = {}
    for name in names:
        own, number = name, 2
        while own.casefold() in found:
            own, number = f"{name}-{number}", number + 1
        found[own.casefold()] = own
    return list(found.values())


def explain(error: BaseException) -> str:
    """The line of a library's message that says what went wrong: the last (OpenVINO tells first where it noticed)."""
    lines = [line.strip(" -").removesuffix(".") for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not _ADVICE.match(line)]
    # ONNX Runtime begins with [ONNXRuntimeError] : 7 : INVALID_PROTOBUF : and names the function that noticed
    line = _CPP_PLACE.sub(" ", (lines or [type(error).__name__])[-1].rsplit(" : ", 1)[-1])
    # the reason stands at the end, what was done at the beginning
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 3]} ... {line[-2 * _LONGEST // 3 :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean --out?``, for the end of a message; empty where nothing is like `word`."""
    from difflib import get_close_matches  # for messages alone

    names, bare = list(dict.fromkeys(known)), word.lstrip("-").lower()
    bodies = {name: name.lstrip("-").lower() for name in names if len(name.lstrip("-")) > 2}
    begin = [name for name, own in bodies.items() if bare and (own.startswith(bare) or bare.startswith(own))]
    near = sorted(begin, key=lambda name: abs(len(name) - len(word)))[:3] + get_close_matches(word, names, cutoff=0.65)
    return f"; did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else ""


def install_hint(extra: str) -> str:
    """``pip install "/src/tilelab[gpu]"``: what adds the packages of `extra`, from where this package came itself."""
    here = Path(__file__).resolve().parents[1]
    if (here / "pyproject.toml").is_file():  # a source folder, installed in place or not at all
        return f'pip install -e "{here}[{extra}]"'
    return _install_from(_origin(), extra)


def _origin() -> dict[str, Any]:
    """Where pip had the package from (PEP 610), empty where it does not say."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution  # 20 ms, for messages alone

    try:
        said = distribution("tilelab").read_text("direct_url.json")
        known = json.loads(said) if said else {}
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("url"), str) else {}


def _install_from(origin: dict[str, Any], extra: str) -> str:
    """The command, given what PEP 610 keeps of an installed package."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    url = str(origin.get("url", ""))
    vcs = origin.get("vcs_info")
    local = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
    if isinstance(vcs, dict) and vcs.get("vcs"):
        revision = f"@{vcs['commit_id']}" if vcs.get("commit_id") else ""
        return f'pip install "tilelab[{extra}] @ {vcs["vcs"]}+{url}{revision}"'
    if local is not None and local.exists():
        return f'pip install "{local}[{extra}]"'
    if url and local is None:
        return f'pip install "tilelab[{extra}] @ {url}"'
    return f'pip install ".[{extra}]" in the folder of tilelab\'s source'


def nearest_word(word: str, known: Sequence[str]) -> str:
    """What to say to one who wrote a word that is not known: the nearest that is, or all of them."""
    from difflib import get_close_matches  # for messages alone

    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"


def counted(count: int, noun: str) -> str:
    """Say how many: ``1 tile``, ``1,024 tiles``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_bytes(count: float) -> str:
    """``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def parse_bytes(text: str) -> int:
    """``4GB``, ``512 MiB``, ``2g`` or plain bytes.

    Raises:
        PlanError: it is none of these.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    cleaned = text.strip().lower().removesuffix("b")
    binary = cleaned.endswith("i")
    cleaned = cleaned.removesuffix("i")
    number, unit = (cleaned[:-1], cleaned[-1:]) if cleaned[-1:] in "kmgt" and cleaned else (cleaned, "")
    try:
        value = float(number)
    except ValueError:
        raise PlanError(f"{text!r} is not an amount of memory: write 4GB, 512MiB or bytes") from None
    power = "kmgt".find(unit) + 1 if unit else 0
    count = int(value * (1024**power if binary else units[unit]))
    if count <= 0:
        raise PlanError(f"{text!r} is not an amount of memory: write 4GB, 512MiB or bytes")
    return count


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too; the first column is left-aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def plain_numbers(value: Any) -> Any:
    """`value` with what JSON cannot say made null."""
    if isinstance(value, dict):
        return {key: plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(item) for item in value]
    if isinstance(value, float):  # NumPy's among them
        return float(value) if math.isfinite(value) else None
    return value
