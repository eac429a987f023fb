"""tilelab against what users would pick instead: same weights, image, tile, overlap; each a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Outcome
from benchmarks.quality import compare_labels, compare_logits, labels_of, read_logits
from benchmarks.settings import CACHE, MEMORY_LIMIT, ROOT, Shape
from benchmarks.workbench import Workbench

ENVIRONMENT = CACHE / "peers" / "venv"
INSTALLED = ENVIRONMENT / "installed.txt"
"""The requirements that the environment was made from, there when it is whole."""

REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements.txt"


@dataclass(frozen=True)
class Contender:
    """Something that segments a plane.

    Attributes:
        name: as the page calls it.
        module: under `benchmarks.peers`; empty for tilelab.
        precision: of the arithmetic.
        here: runs in this environment; otherwise in the peers'.
    """

    name: str
    module: str
    precision: str = "fp32"
    here: bool = False


CONTENDERS = (
    Contender("tilelab fp32", ""),
    Contender("tilelab bf16", "", "bf16"),
    Contender("tilelab int8", "", "int8"),
    Contender("MONAI gaussian", "monai_gaussian"),
    Contender("MONAI gaussian, bf16 channels-last", "monai_gaussian", "bf16"),
    Contender("MONAI ZarrAvgMerger", "monai_zarr"),
    Contender("nnU-Net", "nnunet"),
    Contender("torch-em", "torch_em_halo"),
    Contender("tiler", "tiler_hann"),
    Contender("torchio", "torchio_hann"),
    Contender("KonfAI", "konfai_predict"),
    Contender("NumPy over ONNX Runtime", "onnx_loop", here=True),
)


WHOLE = Contender("whole image", "whole", here=True)
"""Does not tile: what all others are compared with."""


@dataclass(frozen=True)
class Attempt:
    """One run of a contender: its process, what it says of itself, and where its result is."""

    outcome: Outcome
    said: dict[str, Any]
    labels: Path
    logits: Path

    def row(self, megapixels: float) -> dict[str, Any]:
        """The measurements."""
        if not self.outcome.ok:
            return {"finished": False, "reason": self.outcome.reason, "peak": self.outcome.peak}
        outside = self.said["seconds"].get("convert", 0.0)
        seconds = self.outcome.seconds - outside
        return {
            "finished": True,
            "seconds": seconds,
            "outside_seconds": outside,
            "phases": self.said["seconds"],
            "megapixels_per_s": megapixels / seconds,
            "peak": self.said["memory"]["peak"],
            "growth": self.said["memory"]["peak"] - self.said["memory"]["before"],
            "versions": self.said["versions"],
            "settings": self.said["settings"],
        }


def measure_peers(bench: Workbench) -> dict[str, Any]:
    """Every contender on every plane: time, memory, agreement, seams, and what a kill costs."""
    contenders = [c for c in CONTENDERS if c.name.startswith(bench.contenders)]
    scale = bench.scale
    rows: dict[str, dict[str, Any]] = {}
    ready = []
    for contender in contenders:
        reason = why_not(bench, contender)
        rows[contender.name] = {"precision": contender.precision, "missing": reason, "sizes": {}}
        if not reason:
            ready.append(contender)
    _compare(bench, ready, rows)
    for shape in scale.peers:
        for contender in ready:
            bench.say(f"{contender.name} on {shape[0]} x {shape[1]}")
            with bench.folder() as folder:
                attempt = segment(bench, contender, shape, folder)
                rows[contender.name]["sizes"][f"{shape[0]} x {shape[1]}"] = attempt.row(shape[0] * shape[1] / 1e6)
    for contender in ready if scale.kill else ():
        assert scale.kill is not None
        bench.say(f"{contender.name}, killed halfway")
        row = rows[contender.name]
        row["kill"] = _kill(bench, contender, scale.kill, row["sizes"].get(f"{scale.kill[0]} x {scale.kill[1]}"))
    return {
        "tile": scale.tile,
        "overlap": scale.overlap,
        "sizes": [f"{h} x {w}" for h, w in scale.peers],
        "whole": f"{scale.whole[0]} x {scale.whole[1]}",
        "kill": f"{scale.kill[0]} x {scale.kill[1]}" if scale.kill else "",
        "memory_limit": MEMORY_LIMIT,
        "data": bench.model.data,
        "rows": rows,
    }


def why_not(bench: Workbench, contender: Contender) -> str:
    """Why a contender cannot run here; empty when it can."""
    if contender.module:
        if contender.here:
            return ""
        if not INSTALLED.exists():
            return "not installed: python -m benchmarks install-peers"
        if INSTALLED.read_text() != REQUIREMENTS.read_text():
            return "installed from other requirements: python -m benchmarks install-peers"
        return ""
    if contender.precision == "int8" and "openvino" not in bench.quantized:
        return "no quantiser is installed"
    return ""


def segment(
    bench: Workbench, contender: Contender, shape: Shape, folder: Path, *, logits: bool = False, **limits: Any
) -> Attempt:
    """Run a contender once; its result lies in `folder`."""
    limits = {"memory_limit": MEMORY_LIMIT} | limits
    if not contender.module:
        words = ["--engine", "openvino", "--precision", contender.precision, *(["--logits"] if logits else [])]
        model = bench.quantized["openvino"] if contender.precision == "int8" else None
        out = folder / "out.ome.zarr"
        run = bench.infer(shape, out, *words, model=model, **limits)
        said = {}
        if run.outcome.ok:
            report = run.report
            said = {
                "seconds": report["seconds"],
                "memory": report["memory"],
                "versions": {
                    "tilelab": report["versions"]["tilelab"],
                    "openvino": str(report["engine"]["openvino"]).partition("-")[0],
                },
                "settings": "OpenVINO, hann, labels and probabilities with all pyramid levels as OME-Zarr",
            }
        return Attempt(run.outcome, said, out, out)
    job = bench.model.job() | {
        "image": str(bench.image(shape)),
        "batch": 1,
        "precision": contender.precision,
        "out": str(folder),
        "logits": logits,
    }
    document = folder / "job.json"
    document.write_text(json.dumps(job))
    python = sys.executable if contender.here else interpreter()
    outcome = bench.run([python, "-m", f"benchmarks.peers.{contender.module}", document], **limits)
    said = json.loads(outcome.output.splitlines()[-1]) if outcome.ok else {}
    return Attempt(outcome, said, folder / "labels.npy", folder / "logits.npy")


def interpreter() -> Path:
    """Python of the peers' environment."""
    return ENVIRONMENT / "bin" / "python"


def install_peers(say: Callable[[str], None]) -> None:
    """Make the peers' environment from the pinned requirements; about 7 GB with torch.

    Raises:
        subprocess.CalledProcessError: pip could not; its own words are on the terminal.
    """
    if not interpreter().exists():
        say(f"making {ENVIRONMENT}")
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    pip: list[str | Path] = [interpreter(), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    INSTALLED.unlink(missing_ok=True)
    subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
    INSTALLED.write_text(REQUIREMENTS.read_text())


def _compare(bench: Workbench, ready: list[Contender], rows: dict[str, dict[str, Any]]) -> None:
    """Each contender's logits against those of the whole image at once, in fp32."""
    shape = bench.scale.whole
    classes = len(bench.model.spec.classes)
    with bench.folder() as folder:
        bench.say(f"the whole image at once, {shape[0]} x {shape[1]}")
        whole = segment(bench, WHOLE, shape, folder, logits=True)
        if not whole.outcome.ok:
            bench.say(f"that failed: {whole.outcome.reason}")
            return
        expected = read_logits(whole.logits)
        for contender in ready:
            bench.say(f"{contender.name} against it")
            with bench.folder() as other:
                attempt = segment(bench, contender, shape, other, logits=True)
                if attempt.outcome.ok:
                    row = compare_logits(read_logits(attempt.logits), expected)
                    labels = compare_labels(labels_of(attempt.labels), labels_of(whole.labels), classes)
                    rows[contender.name]["whole"] = row | labels


def _kill(bench: Workbench, contender: Contender, shape: Shape, known: dict[str, Any] | None) -> dict[str, Any]:
    """Seconds that SIGKILL at half time costs, when the same command is given again; `known` is an undisturbed run."""
    if known is None:
        with bench.folder() as folder:
            known = segment(bench, contender, shape, folder).row(shape[0] * shape[1] / 1e6)
    if not known["finished"]:
        return {"lost": None, "reason": known["reason"]}
    undisturbed = known["seconds"] + known["outside_seconds"]
    with bench.folder() as folder:
        first = segment(bench, contender, shape, folder, kill_after=undisturbed / 2)
        again = segment(bench, contender, shape, folder)
    return {
        "undisturbed": undisturbed,
        "killed_after": first.outcome.seconds,
        "again": again.outcome.seconds,
        "lost": first.outcome.seconds + again.outcome.seconds - undisturbed if again.outcome.ok else None,
    }
