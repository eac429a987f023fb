"""How large the benchmarks are, and where things lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "benchmarks" / ".cache"
RESULTS = ROOT / "benchmarks" / "results"

PlaneShape = tuple[int, int]
VolumeShape = tuple[int, int, int]

MEMORY_LIMIT = 24 * 10**9
"""Bytes beyond which a peer counts as not finishing."""


PETABYTE: dict[str, VolumeShape] = {"1 PB": (10_000, 316_228, 316_228)}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size of everything; shapes are rows and columns in pixels.

    Attributes:
        name: ``toy`` (tests), ``short`` (minutes), ``full`` (half an hour and more) or ``long`` (hours).
        tile, overlap: of the model, and of every peer.
        steps: of training; more only make a better model, not a faster one.
        main: the plane of efficiency, precision and stages.
        tall: a plane several times as tall, whose memory must be the same; None leaves it out.
        areas: planes of 1, 4 and 16 times the area.
        peers: planes that peers are timed on, smallest first.
        whole: the plane on which results are compared with inference of the whole image at once.
        peer_seconds: what one run of a contender may take.
        kill: the plane on which runs are killed halfway; None leaves that out.
        repeats: runs of what is compared closely.
        seconds: how long each kernel and codec is measured.
        volumes: whose segmentation by many workers is simulated, by name; the first one is really handed out, too.
        workers: how many of them.
        sleeping: how many real workers of Dask, which only sleep.
        idle_workers, idle_units: with which the cost of a unit is measured.
        drawn: train and test on drawn micrographs even where there are real ones.
    """

    name: str
    tile: int = 512
    overlap: int = 128
    steps: int = 120
    main: PlaneShape
    tall: PlaneShape | None = None
    areas: tuple[PlaneShape, ...]
    peers: tuple[PlaneShape, ...]
    whole: PlaneShape
    peer_seconds: float = 900.0
    kill: PlaneShape | None = None
    repeats: int
    seconds: float
    volumes: Mapping[str, VolumeShape] = field(default_factory=lambda: {"1 TB": (1000, 31_623, 31_623)} | PETABYTE)
    workers: tuple[int, ...] = (1, 4, 16, 64, 256, 1000)
    sleeping: tuple[int, ...] = (64, 256)
    idle_workers: int = 64
    idle_units: int = 4000
    drawn: bool = False


TOY = Scale(
    name="toy",
    tile=64,
    overlap=32,
    steps=2,
    main=(192, 200),
    areas=((96, 96), (192, 192)),
    peers=((128, 136),),
    whole=(128, 136),
    kill=(128, 136),
    repeats=1,
    seconds=0.02,
    volumes={"tiny": (40, 4096, 4096), "small": (60, 8192, 8192)},
    workers=(1, 4),
    sleeping=(4,),
    idle_workers=4,
    idle_units=80,
    drawn=True,
)
SHORT = Scale(
    name="short",
    main=(3072, 3072),
    areas=((1024, 1024), (2048, 2048), (4096, 4096)),
    peers=((2048, 2048),),
    whole=(1408, 1408),
    repeats=2,
    seconds=0.5,
    volumes={"1 TB": (1000, 31_623, 31_623)},
    sleeping=(256,),
    idle_units=1000,
)
FULL = Scale(
    name="full",
    main=(9958, 9959),
    areas=((2490, 2490), (4979, 4979), (9958, 9959)),
    peers=((2048, 2048), (4096, 4096), (9958, 9959)),
    whole=(1408, 1408),
    kill=(2048, 2048),
    repeats=2,
    seconds=2.0,
)
LONG = replace(
    FULL, name="long", tall=(39832, 9959), whole=(2048, 2048), kill=(4096, 4096), repeats=3, peer_seconds=3600.0
)
SCALES = {scale.name: scale for scale in (TOY, SHORT, FULL, LONG)}
