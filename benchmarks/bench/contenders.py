"""What tilelab is compared with, and how each is run once, in a process of its own, on the same weights and image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.processes import Outcome
from benchmarks.bench.settings import CACHE, MEMORY_LIMIT, ROOT, PlaneShape
from benchmarks.bench.workbench import Infer, Workbench

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
        leads: is timed on the largest plane before anything that may be left out.
        keeps_memory: the C library is told to keep what is freed; see `KEEP_MEMORY`.
        tile: px, where it is another than everybody's.
        free: tilelab chooses its tiles itself, as it does where nothing is said.
    """

    name: str
    module: str
    precision: str = "fp32"
    here: bool = False
    leads: bool = False
    keeps_memory: bool = False
    tile: int | None = None
    free: bool = False


KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(32 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
"""Environment of glibc.  Without it every activation of torch is mapped and cleared anew, which a virtual machine with
costly page faults makes the larger part of the time: so nobody is beaten by the allocator alone."""

CONTENDERS = (
    Contender("tilelab fp32", "", leads=True),
    Contender("tilelab bf16", "", "bf16", leads=True),
    Contender("tilelab int8", "", "int8", leads=True),
    Contender("tilelab fp32, own tile", "", free=True, leads=True),
    Contender("tilelab bf16, own tile", "", "bf16", free=True, leads=True),
    Contender("tilelab int8, own tile", "", "int8", free=True, leads=True),
    Contender("MONAI gaussian", "monai_gaussian", leads=True),
    Contender("NumPy over ONNX Runtime", "onnx_loop", here=True, leads=True),
    Contender("MONAI gaussian, bf16 channels-last", "monai_gaussian", "bf16", leads=True),
    Contender("MONAI gaussian, memory kept", "monai_gaussian", leads=True, keeps_memory=True),
    Contender(
        "MONAI gaussian, bf16 channels-last, memory kept", "monai_gaussian", "bf16", leads=True, keeps_memory=True
    ),
    Contender("MONAI gaussian, tile 1024", "monai_gaussian", leads=True, keeps_memory=True, tile=1024),
    Contender(
        "MONAI gaussian, bf16 channels-last, tile 1024",
        "monai_gaussian",
        "bf16",
        leads=True,
        keeps_memory=True,
        tile=1024,
    ),
    Contender("nnU-Net", "nnunet"),
    Contender("MONAI ZarrAvgMerger", "monai_zarr"),
    Contender("torch-em", "torch_em_halo"),
    Contender("tiler", "tiler_hann"),
    Contender("torchio", "torchio_hann"),
    Contender("KonfAI", "konfai_predict"),
)
"""In order of importance: where time is short, the last are left out first.  All have the same tile, but those that are
there to be at their best: tilelab with the tiles it chooses, MONAI in bf16, with its memory kept, with larger tiles."""

WHOLE = Contender("whole image", "whole", here=True)
"""Does not tile: what all others are compared with."""


@dataclass(frozen=True)
class Trial:
    """One run of a contender: its process, what it says of itself, and where its result is."""

    outcome: Outcome
    said: dict[str, Any]
    labels: Path
    logits: Path

    def row(self, megapixels: float) -> dict[str, Any]:
        """The measurements."""
        if not self.outcome.ok:
            reason, late = self.outcome.reason, self.outcome.stopped == "time"
            return {"finished": False, "reason": reason, "late": late, "peak": self.outcome.peak}
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


def recall(bench: Workbench, contender: Contender, shape: PlaneShape) -> Trial | None:
    """A contender's run that another benchmark has made already, if it did; its result is gone."""
    if contender.module:
        return None
    run = bench.recall_infer(shape, *_words(bench, contender), model=_own_model(bench, contender))
    return None if run is None else Trial(run.outcome, _said(run), Path(), Path())


def segment(
    bench: Workbench, contender: Contender, shape: PlaneShape, folder: Path, *, logits: bool = False, **limits: Any
) -> Trial:
    """Run a contender once; its result lies in `folder`."""
    limits = {"memory_limit": MEMORY_LIMIT} | limits
    if contender.keeps_memory:
        limits["env"] = KEEP_MEMORY
    if not contender.module:
        words = [*_words(bench, contender), *(["--logits"] if logits else [])]
        out = folder / "out.ome.zarr"
        run = bench.infer(shape, out, *words, model=_own_model(bench, contender), **limits)
        return Trial(run.outcome, _said(run) if run.outcome.ok else {}, out, out)
    job = bench.model.job() | {
        "image": str(bench.image(shape)),
        "batch": 1,
        "precision": contender.precision,
        "out": str(folder),
        "logits": logits,
    }
    if contender.tile is not None:
        job["tile"] = contender.tile
    document = folder / "job.json"
    document.write_text(json.dumps(job))
    python = sys.executable if contender.here else interpreter()
    outcome = bench.run([python, "-m", f"benchmarks.peers.{contender.module}", document], **limits)
    said = json.loads(outcome.output.splitlines()[-1]) if outcome.ok else {}
    if said and contender.tile is not None:
        said["settings"] += f", tiles of {contender.tile} px"
    if said and contender.keeps_memory:
        said["settings"] += ", glibc told to keep freed memory (MALLOC_MMAP_MAX_=0 ...)"
    return Trial(outcome, said, folder / "labels.npy", folder / "logits.npy")


def _words(bench: Workbench, contender: Contender) -> list[str]:
    own = ["--engine", "openvino", "--precision", contender.precision]
    return own if contender.free else [*own, *bench.pinned]


def _own_model(bench: Workbench, contender: Contender) -> Path | None:
    return bench.quantized["openvino"] if contender.precision == "int8" else None


def _said(run: Infer) -> dict[str, Any]:
    """What `tilelab infer` says of itself, as the peers do."""
    report = run.report
    return {
        "seconds": report["seconds"],
        "memory": report["memory"],
        "versions": {
            "tilelab": report["versions"]["tilelab"],
            "openvino": str(report["engine"]["openvino"]).partition("-")[0],
        },
        "settings": f"OpenVINO, hann, tiles of {' x '.join(map(str, report['tile']))} px, overlap "
        f"{max(report['overlap'])}; labels and probabilities with all pyramid levels as OME-Zarr",
    }


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
