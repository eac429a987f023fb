"""Commands under a layer that lets one call of the operating system fail or be the last.

    python -m tests.faults FOLDER IMAGE STEPS COMMAND...

Warms up, counts the calls of COMMAND that touch files below its folder, and then runs it once for each of STEPS moments
(or ``all``), halved between kills and errors, in a fork and a folder of its own; then the same command again,
undisturbed.  Prints a line for each: what failed, what came of it, and ``ok`` where the second run left the bytes of an
undisturbed one and nothing else, and the faulty run gave one line and no traceback.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.five_runs import digest

CALLS = ("open", "rename", "replace", "mkdir", "unlink", "rmdir", "write", "truncate", "scandir", "stat")
NOT_OURS = (".ruff_cache", "__pycache__")


class Layer:
    """Counts calls below a folder; the one numbered `at` fails as `kind` says."""

    def __init__(self, folder: str, at: int = -1, kind: str = "error") -> None:
        self.folder, self.at, self.kind = folder, at, kind
        self.count = 0
        self.struck = ""
        self._owned: set[int] = set()

    def install(self) -> None:
        """Put the layer over `os` and `open`, in this process for good."""
        for name in CALLS:
            setattr(os, name, self._over(name, getattr(os, name)))
        builtins.open = io.open = self._over("open", builtins.open)  # type: ignore[assignment]

    def _over(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def layered(path: Any, *args: Any, **options: Any) -> Any:
            if self._concerns(path):
                self._strike(
                    f"{name} {path if isinstance(path, int) else os.path.relpath(os.fsdecode(path), self.folder)}"
                )
            result = call(path, *args, **options)
            if name == "open" and isinstance(result, int) and self._concerns(path):
                self._owned.add(result)
            return result

        return layered

    def _concerns(self, path: Any) -> bool:
        if isinstance(path, int):
            return path in self._owned
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        return (name if name.startswith("/") else f"{self.folder}/{name}").startswith(
            self.folder
        ) and not name.endswith("in.tif")

    def _strike(self, what: str) -> None:
        self.count += 1
        if self.count - 1 != self.at:
            return
        self.struck = what
        if self.kind == "kill":
            print(what, file=sys.__stdout__, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(
            errno.EIO if self.at % 2 else errno.ENOSPC, os.strerror(errno.EIO if self.at % 2 else errno.ENOSPC)
        )


def run_command(words: list[str]) -> int | str:
    """The exit code; or what escaped."""
    from tilelab.cli.main import main

    try:
        return main(words)
    except SystemExit as end:
        return f"exit {end.code}"
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} in {Path(where.filename).name}:{where.lineno}"


def in_fork(folder: Path, words: list[str], at: int, kind: str) -> tuple[int | str, str, int]:
    """The command in a fork: its exit code or what escaped, what it said and what struck, and the number of calls."""
    said, told = folder.parent / "said", folder.parent / "told"
    process = os.fork()
    if process == 0:
        code: int | str = "?"
        layer = Layer(str(folder), at, kind)
        try:
            os.chdir(folder)
            for number, path in ((2, said), (1, told)):
                os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            layer.install()
            code = run_command(words)
        finally:
            sys.stderr.flush()
            print(f"{layer.struck}\n{layer.count}\n{code}", flush=True)
            os._exit(0)
    _, status = os.waitpid(process, 0)
    struck, count, code = [*told.read_text().split("\n", 2), "", "", ""][:3]
    text = said.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        return "killed", f"{text}\n{struck}", 0
    return (int(code) if code.strip().isdecimal() else code.strip()), f"{text}\n{struck}", int(count or 0)


def main() -> None:
    """Run all of it."""
    root, image, steps, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    out = words[words.index("-o") + 1] if "-o" in words else words[2]
    os.environ["COLUMNS"] = "200"

    def fresh(name: str) -> Path:
        folder = (root / name / "here").absolute()
        folder.mkdir(parents=True)
        shutil.copy2(image, folder / "in.tif")
        return folder

    warm = fresh("warm")
    os.chdir(warm)
    assert run_command(words) == 0  # imports, compiles
    os.chdir(root)
    reference = fresh("reference")
    code, said, calls = in_fork(reference, words, -1, "error")
    assert code == 0, said
    expected, present = digest(reference / out), sorted(p.name for p in reference.iterdir())
    moments = (
        range(calls) if steps == "all" else sorted({i * calls // (int(steps) // 2) for i in range(int(steps) // 2)})
    )
    for at in moments:
        for kind in ("kill", "error"):
            folder = fresh(f"{kind}{at}")
            code, said, _ = in_fork(folder, words, at, kind)
            lines = said.strip().splitlines()
            struck = lines.pop() if lines else ""
            problems = []
            if kind == "error":
                errors = [line for line in lines if line.startswith("tilelab: error: ")]
                if code not in (0, 2) or len(errors) != (code == 2) or "Traceback" in said:
                    problems.append(f"gave {code} and {len(errors)} lines")
                if code == 0 and digest(folder / out) != expected:
                    problems.append("said done, and the bytes are others")
            again, said, _ = in_fork(folder, words if "convert" not in words or not (folder / out).exists() else
                                     [*words, "--overwrite"], -1, "error")  # fmt: skip
            if again == 0:
                if digest(folder / out) != expected:
                    problems.append("then other bytes")
                if (left := sorted(p.name for p in folder.iterdir())) != present and kind == "kill":
                    problems.append(f"then leaves {set(left) ^ set(present)}")
            elif not (again == 2 and said.startswith("tilelab: error: ")):
                problems.append(f"then {again}")
            elif kind == "error" or "--restart" not in said:
                problems.append(f"then refused: {said.splitlines()[0][:160]}")
            print(f"{kind} at {at} of {calls} ({struck}): {'; '.join(problems) or 'ok'}", flush=True)
            shutil.rmtree(folder.parent)


if __name__ == "__main__":
    main()
