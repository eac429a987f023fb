"""One choice of work: the tile, overlap and batch by which an image takes least time, from whole numbers alone.

Tiles are fitted: n of them cover an axis with the overlap and little more, so none is moved back over what is done.
Larger tiles have fewer seams and need less overlap to agree with the whole image, but more memory, and leave cores idle
at the end; how fast an engine is at a size is measured, or taken as the usual (`rates.py`).  Nothing here depends on
workers or threads, so that the bytes do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import msgspec

from tilelab.engines.combined import MAP as UNCERTAINTY
from tilelab.errors import PlanError
from tilelab.geometry import AxisTiling
from tilelab.run.plan.plan import Plan, make_plan, usual_memory_limit
from tilelab.run.plan.rates import Rates
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.spec import ModelSpec, Seams

TOLERANCE = 5e-4  # share of labels that may differ from those of the whole image at once
MARGIN = 4.0  # of images that are unlike those a curve was measured on: enlarged, inverted, of poor contrast
ALIKE = 2.0  # the same of images that look like them: a curve is of a few images, and the next one is another
WHOLE = 640 * 640  # pixels of an image that is one tile: it has no seams, and several would be no faster
FILL = 2.0  # tiles' worth of time at the beginning and the end of a run, when not all cores have one
_COARSE = 64  # px, that tiles of small images are rounded to: images of many sizes share a few engines
CLEAR = 0.05  # what costs so much more than the best that is planned need not be planned
_LEAST, _MOST, _RATIO = 192, 2304, 1.12  # sides that are looked at, px
_RELAXED = 1.5
_LEAST_OVERLAP = 64  # px, or all that a pixel sees: images are not always like those a curve was measured on
_PLANES = 8  # of a stack that are planned
_PLANS = 200  # candidates whose memory is planned, cheapest first
_ACTIVATIONS = 640  # bytes a pixel of a tile that an engine holds on each core, about, of a U-Net
_GPU_PIXELS = 8 * 512 * 512  # in a batch on a GPU: fewer leave it idle, more only take memory


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an image is cut for an engine: pixels per axis in the order of the model's axes, and tiles per run."""

    tile: tuple[int, ...]
    overlap: tuple[int, ...]
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tiling that was looked at.

    Attributes:
        computed: pixels computed for each of the image, what is inferred twice at the borders of lanes included.
        wrong: share of labels expected to differ from those of the whole image at once, at most.
        rate: of the engine, relative to its fastest known.
        memory_bytes: planned, beside the engine; 0 where it was not planned because others were better.
        cost: pixels over the rate: what is compared.
    """

    tiling: Tiling
    computed: float
    wrong: float
    rate: float
    memory_bytes: int
    cost: float


@dataclass(frozen=True)
class Machine:
    """What of a machine decides.

    Attributes:
        rates: of the engine by the size of a tile.
        cores: each of which has a tile of its own.
        memory_bytes: of all of it.
        gpu: whether the engine is on one.
    """

    rates: Rates
    cores: int
    memory_bytes: int
    gpu: bool = False


def usual_seams(receptive_field: int) -> Seams:
    """The curve of a network of which only the receptive field is known: above those that were measured."""
    steps = sorted({0, *(receptive_field * k // 8 for k in range(1, 9))})
    return Seams(overlap=tuple(steps), labels=tuple(4 * math.exp(-5.6 * s / max(1, receptive_field)) for s in steps))


def is_free(spec: ModelSpec) -> bool:
    """Whether a model leaves its tile to us, and says enough to choose one; a map of its uncertainty is no matter."""
    known = (spec.seams is not None and bool(spec.seams.overlap)) or spec.receptive_field is not None
    own = tuple(output for output in spec.outputs if output.name != UNCERTAINTY)
    plain = spec.plain or (bool(own) and msgspec.structs.replace(spec, outputs=own).plain)
    return spec.axes == "yx" and not spec.tile_fixed and plain and known


def choose_tiling(
    image: ImageFacts,
    spec: ModelSpec,
    written: Written,
    machine: Machine,
    *,
    exact: bool = False,
    overlap: int | None = None,
    square: bool = False,
    batch: int | None = None,
    masked: bool = False,
    memory_limit: int | None = None,
    margin: float = MARGIN,
) -> list[Candidate]:
    """The candidates, the best first: least cost of those that agree with the whole image and fit the memory.

    Args:
        image, written: what is segmented, and what is kept of it.
        spec: of a model that `is_free`.
        machine: that it runs on.
        exact: overlap by the receptive field.
        overlap: the only one that is looked at, where it is given.
        square: for the symmetries of the square.
        batch: tiles per run, where that is given.
        masked: whether there is a mask.
        memory_limit: bytes beside the engine; None for `usual_memory_limit`.
        margin: how many times a measured curve's differences the image may have: `MARGIN`, or `ALIKE`.

    Raises:
        PlanError: none fits the memory.
    """
    seams = known_seams(spec, margin)
    found = _candidates(image, spec, seams, machine, exact=exact, overlap=overlap, square=square, batch=batch)
    streams = 1 if machine.gpu else machine.cores
    planes = image.shape[0]
    few = replace(image, shape=(min(planes, _PLANES), *image.shape[1:]))  # the others are cut as these are

    def plan_one(candidate: Candidate) -> Candidate:
        tiling = candidate.tiling
        used = msgspec.structs.replace(spec, tile=tiling.tile, overlap=tiling.overlap)
        request = Request.of(few, used, written, batch=tiling.batch, streams=streams, masked=masked)
        plan = make_plan(request, memory_limit=memory_limit or usual_memory_limit(request))
        return _with_plan(candidate, plan, planes / few.shape[0], small=math.prod(image.shape) <= WHOLE)

    found.sort(key=lambda c: (c.cost, c.tiling.tile))
    tolerance, most = TOLERANCE, max(c.wrong for c in found)
    planned, reason = _plan_some([c for c in found if c.wrong <= tolerance], plan_one)
    if not planned:  # at least as near to the whole image as with the model's own tiles, which nobody would call wrong
        tolerance = max(tolerance, _own_wrong(image, spec, seams) / _RELAXED)
    while not planned and tolerance < most:
        tolerance *= _RELAXED
        planned, reason = _plan_some([c for c in found if c.wrong <= tolerance], plan_one)
    if not planned:
        if memory_limit is None:
            return [min(found, key=lambda c: math.prod(c.tiling.tile))]  # the run plans with what there is
        raise reason or PlanError("no tile fits the memory: raise --memory")
    planned.sort(key=lambda c: (c.cost, c.tiling.tile))
    return planned


def _plan_some(
    ordered: Sequence[Candidate], plan_one: Callable[[Candidate], Candidate]
) -> tuple[list[Candidate], PlanError | None]:
    """The cheapest of `ordered` that fit the memory, as they are planned; and why the first that does not, does not."""
    planned: list[Candidate] = []
    reason: PlanError | None = None
    best = math.inf
    for candidate in ordered[:_PLANS]:
        if candidate.cost > best * (1 + CLEAR):
            break
        try:
            planned.append(plan_one(candidate))
        except PlanError as error:
            reason = reason or error
            continue
        best = min(best, planned[-1].cost)
    return planned, reason


def _own_wrong(image: ImageFacts, spec: ModelSpec, seams: Seams) -> float:
    """What is to be expected of the model's own tile and overlap."""
    size, overlap = image.shape[1:], min(spec.overlap)
    tiles = [_axis(n, t, overlap, spec.stride)[0] for n, t in zip(size, spec.tile, strict=True)]
    return wrong_share(seams, overlap, tiles, size)


def known_seams(spec: ModelSpec, margin: float) -> Seams:
    """The curve by which overlaps are chosen: what was measured and a margin, else the usual one."""
    if spec.seams is None or not spec.seams.overlap:
        assert spec.receptive_field is not None  # noqa: S101 - `is_free`
        return usual_seams(spec.receptive_field)
    return msgspec.structs.replace(spec.seams, labels=tuple(margin * share for share in spec.seams.labels))


def wrong_share(seams: Seams, overlap: int, tiles: Sequence[int], size: Sequence[int]) -> float:
    """Share of labels that differ from those of the whole image, of so many tiles an axis."""
    return seams.per_pixel(overlap) * sum((n - 1) / s for n, s in zip(tiles, size, strict=True))


def _with_plan(candidate: Candidate, plan: Plan, times: float, *, small: bool) -> Candidate:
    """The candidate at the cost of so many `times` its plan, which may infer tiles twice."""
    pixels = math.prod(candidate.tiling.tile)
    return Candidate(
        candidate.tiling,
        plan.tiles * pixels / plan.pixels,
        candidate.wrong,
        candidate.rate,
        plan.memory_bytes,
        _cost(times * plan.tiles, pixels, candidate.rate, small=small),
    )


def _cost(tiles: float, pixels: int, rate: float, *, small: bool) -> float:
    return (tiles + (0.0 if small else FILL)) * pixels / rate


def _candidates(
    image: ImageFacts,
    spec: ModelSpec,
    seams: Seams,
    machine: Machine,
    *,
    exact: bool,
    overlap: int | None,
    square: bool,
    batch: int | None,
) -> list[Candidate]:
    """Every fitted tiling, before memory is thought of."""
    planes, *size = image.shape
    small = planes * math.prod(size) <= WHOLE
    most = _MOST**2 if machine.gpu else machine.memory_bytes // 4 // machine.cores // _ACTIVATIONS
    step = math.lcm(_COARSE, spec.stride) if small else 1
    rounded = [-(-n // step) * step for n in size]
    found = []
    given = [overlap] if overlap is not None else _overlaps(spec, seams, exact=exact)
    for overlap in given:
        sides = [_sides(n, overlap, spec.stride, least) for n, least in zip(rounded, _least(spec), strict=True)]
        pairs = list(_pairs(sides, square=square))
        least_pixels = min(map(math.prod, pairs))
        axes = [{t: _axis(n, t, overlap, spec.stride) for t in {p[a] for p in pairs}} for a, n in enumerate(size)]
        for tile in pairs:
            pixels = math.prod(tile)
            if pixels > max(most, least_pixels):
                continue
            tiles, used = zip(*(axes[a][t] for a, t in enumerate(tile)), strict=True)
            wrong = 0.0 if exact else wrong_share(seams, overlap, tiles, size)
            count = planes * math.prod(tiles)
            tiling = Tiling(tile, used, batch or (max(1, _GPU_PIXELS // pixels) if machine.gpu else 1))
            rate = machine.rates.of(pixels)
            computed = count * pixels / (planes * math.prod(size))
            found.append(Candidate(tiling, computed, wrong, rate, 0, _cost(count, pixels, rate, small=small)))
    return found


def _axis(size: int, tile: int, overlap: int, stride: int) -> tuple[int, int]:
    """How many tiles cover an axis, and their overlap, which a single one has not."""
    axis = AxisTiling(size, tile, min(overlap, tile - stride), stride)
    return len(axis), 0 if len(axis) == 1 else axis.overlap


def exact_overlap(spec: ModelSpec) -> int:
    """The overlap at which every pixel is seen by a tile that has all that the pixel's result depends on.

    Raises:
        PlanError: there is none.
    """
    if spec.receptive_field is None:
        raise PlanError("--exact: an output pixel of this model may see its whole tile, no overlap makes tiles agree")
    return -(-spec.receptive_field // spec.stride) * spec.stride


def _overlaps(spec: ModelSpec, seams: Seams, *, exact: bool) -> list[int]:
    """Overlaps worth a look: those that were measured, in the model's strides."""
    if exact:
        return [exact_overlap(spec)]
    known = sorted({-(-o // spec.stride) * spec.stride for o in seams.overlap})
    return [o for o in known if o >= _LEAST_OVERLAP] or known[-1:]


def _least(spec: ModelSpec) -> tuple[int, ...]:
    return spec.tile_min or (spec.stride,) * len(spec.tile)


def _sides(size: int, overlap: int, stride: int, least: int) -> list[int]:
    """Sides of tiles that cover an axis with little waste, at most one within every twelfth."""
    padded = max(-(-size // stride) * stride, -(-least // stride) * stride)
    found: dict[int, None] = {}
    side = float(_MOST)
    while side >= min(_LEAST, padded):
        count = max(1, round((padded - overlap) / max(1.0, side - overlap)))
        fitted = -(-(padded + (count - 1) * overlap) // count // stride) * stride
        fitted = max(fitted, -(-least // stride) * stride)
        if fitted <= max(_MOST, least) and (fitted >= 2 * overlap or fitted == padded):
            found[fitted] = None
        side /= _RATIO
    return list(found) or [min(padded, max(least, 2 * overlap, _LEAST) // stride * stride + stride)]


def _pairs(sides: Sequence[Iterable[int]], *, square: bool) -> Iterable[tuple[int, ...]]:
    """One side for each axis; or the same for all."""
    if square:
        return [(side,) * len(sides) for side in sorted({s for axis in sides for s in axis})]
    return product(*sides)
