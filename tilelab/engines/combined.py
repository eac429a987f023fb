"""Several models as one, or one under the symmetries of the square, and how far they agree.

The probabilities of several models are averaged, each calibrated where its model says how (`tilelab.spec.Confidence`);
where they differ is a map of its own, blended like every map:

    entropy      of the mean probabilities: bits that are missing to certainty
    models       what the models disagree about, symmetries   what the turned and mirrored tiles do:
                 entropy of the mean less the mean of the entropies (the mutual information), 0 where all say the same
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import BaseEngine, Engine, EngineMemory
from tilelab.errors import ModelError
from tilelab.kernels.symmetries import SYMMETRIES, check_square, turn, turn_back
from tilelab.spec import ModelSpec, Output, same_pixel_size
from tilelab.text import size_text

Uncertainty = Literal["entropy", "symmetries", "models"]
KINDS: tuple[Uncertainty, ...] = get_args(Uncertainty)
MAP = "uncertainty"
"""Name of the map."""

_LEAST = np.float32(2**-40)
_BITS = np.float32(1 / math.log(2))


def combined_spec(specs: Sequence[ModelSpec], uncertainty: Uncertainty | None) -> ModelSpec:
    """What several models are together: tiles that suit all, and the map that is asked for.

    Raises:
        ModelError: they do not go together, or have no such map.
    """
    first = specs[0]
    if uncertainty == "models" and len(specs) == 1:
        raise ModelError("--uncertainty models compares several: give them with --model A,B")
    for spec in specs:
        if not spec.plain:
            raise ModelError(f"{spec.name} gives more than the probabilities of its classes: it is run by itself")
        for what, mine, its in _sames(first, spec):
            if mine != its:
                raise ModelError(f"{first.name} and {spec.name} do not go together: {what} {mine} and {its}")
    sized = [(spec.name, spec.pixel_size_nm) for spec in specs if spec.pixel_size_nm is not None]
    for name, sizes in sized:
        if len(sizes) != len(sized[0][1]) or not same_pixel_size(sized[0][1], sizes):
            mine, its = (size_text(f"{size:g}" for size in one) for one in (sized[0][1], sizes))
            raise ModelError(
                f"{sized[0][0]} and {name} do not go together: they were trained on {mine} and {its} nm per pixel "
                "(--model-pixel-size says what holds for both)"
            )
    stride = math.lcm(*(spec.stride for spec in specs))
    free = [spec.tile for spec in specs if spec.tile_fixed] or [tuple(max(n) for n in _across(specs, "tile"))]
    tile = tuple(t if t == 1 else -(-t // stride) * stride for t in free[0])
    if uncertainty == "symmetries" and tile[-1] != tile[-2]:
        if any(spec.tile_fixed for spec in specs):
            check_square(tile)
        tile = (*tile[:-2], *(min(tile[-2:]),) * 2)
    overlap = tuple(o if o < t else t // 2 for o, t in zip(map(max, _across(specs, "overlap")), tile, strict=True))
    least = [spec.tile_min for spec in specs if spec.tile_min is not None]
    several = len(specs) > 1
    together = {
        "name": "+".join(spec.name for spec in specs),
        "architecture": "+".join(spec.architecture for spec in specs),
        "stride": stride,
        "tile_fixed": any(spec.tile_fixed for spec in specs),
        "tile_min": tuple(max(n) for n in zip(*least, strict=True)) if least else None,
        "pixel_size_nm": sized[0][1] if sized else None,
        "receptive_field": _widest([spec.receptive_field for spec in specs]),
        "seams": None,
        "home": None,
        "confidence": None,  # each has its own, and the mean is of what can be believed
        "training": {"models": [spec.name for spec in specs]},
        "precisions": tuple(p for p in first.precisions if all(p in spec.precisions for spec in specs)) or ("fp32",),
    }
    outputs = (*first.outputs, Output(name=MAP, kind="map")) if uncertainty else first.outputs
    changed: dict[str, Any] = {"tile": tile, "overlap": overlap, "outputs": outputs}
    return msgspec.structs.replace(first, **changed, **(together if several else {}))


def is_combined(spec: ModelSpec) -> bool:
    """Whether it is `combined_spec`'s: of several models, or with its map."""
    return "models" in spec.training or any(output.name == MAP for output in spec.maps)


def combined_planes(spec: ModelSpec) -> int:
    """Numbers per pixel of a tile, 4 bytes each, that `CombinedEngine.run` holds at most beside its members."""
    return 7 * spec.class_values + 3 * spec.channels + 4


def _sames(first: ModelSpec, spec: ModelSpec) -> Iterator[tuple[str, object, object]]:
    """What models must have alike."""
    plain = [msgspec.structs.replace(one.normalization, mean=(0.0,), std=(1.0,)) for one in (first, spec)]
    yield "normalization", plain[0], plain[1]
    if first.normalization.clip is not None:  # what is cut off for one cannot be given to another
        mine, its = ((one.normalization.mean, one.normalization.std) for one in (first, spec))
        yield "mean and std of what is cut off", mine, its
    yield "classes", [c.name for c in first.classes], [c.name for c in spec.classes]
    for name in ("activation", "axes", "channels", "neighbours", "window"):
        yield name, getattr(first, name), getattr(spec, name)
    yield "thresholds", first.outputs[0].thresholds, spec.outputs[0].thresholds
    if spec.tile_fixed and first.tile_fixed:
        yield "tiles", first.tile, spec.tile


def _across(specs: Sequence[ModelSpec], name: str) -> Iterator[tuple[int, ...]]:
    return zip(*(getattr(spec, name) for spec in specs), strict=True)


def _widest(fields: list[int | None]) -> int | None:
    known = [field for field in fields if field is not None]
    return max(known) if len(known) == len(fields) else None


class CombinedEngine(BaseEngine):
    """Engines of one batch shape as one; closes them.

    Args:
        members: at least one, of `combined_spec`'s tile and batch.
        spec: see `combined_spec`.
        uncertainty: the map that is added.
    """

    def __init__(self, members: Sequence[Engine], spec: ModelSpec, uncertainty: Uncertainty | None) -> None:
        first = members[0]
        digests = " ".join(f"{one.model_digest} {one.name} {one.precision}" for one in members)
        digest = hashlib.sha256(f"{digests} {uncertainty}".encode()).hexdigest()
        super().__init__(spec, first.tile, first.batch, digest)
        self.members, self._uncertainty = tuple(members), uncertainty
        self._symmetries = SYMMETRIES if uncertainty == "symmetries" else SYMMETRIES[:1]
        self.name = "+".join(dict.fromkeys(one.name for one in members))
        self.device, self.precision = first.device, first.precision
        self.streams = min(one.streams for one in members)
        ways = [f"{one.name} {one.precision} on {one.device}" for one in members]
        unlike = [f"the models do not run alike: {', '.join(ways)}"] if len(set(ways)) > 1 else []
        self.warnings = tuple(dict.fromkeys([*unlike, *(line for one in members for line in one.warnings)]))
        self.assumptions = tuple(dict.fromkeys(guess for one in members for guess in one.assumptions))
        self.memory = EngineMemory(
            *(sum(getattr(one.memory, kind.name) for one in members) for kind in fields(EngineMemory))
        )
        self._own = threading.local()
        self._inputs = [_between(first.spec, one.spec) for one in members]

    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""
        count = self.spec.class_values
        logits, one, mean, spread = self._buffers(out, count)
        shared, sure = len(self.members) > 1, None
        if self._uncertainty in ("models", "symmetries"):
            sure = np.zeros((len(out), *out.shape[2:]), np.float32)
        mean[...] = 0
        for member, between in zip(self.members, self._inputs, strict=True):
            logits[...] = 0
            for symmetry in self._symmetries:
                turned = np.array(turn(tiles, *symmetry), order="C")  # a copy: a function may change what it is given
                member.run(turned if between is None else turned * between[0] + between[1], one)
                logits += turn_back(one, *symmetry)
                if sure is not None and self._uncertainty == "symmetries":
                    chances = self._probabilities(turn_back(one, *symmetry), member.spec.sharpness)
                    spread += chances
                    sure += self._entropy(chances)
            if len(self._symmetries) > 1:
                np.multiply(logits, np.float32(1 / len(self._symmetries)), out=logits)
            if shared or self._uncertainty:
                chances = self._probabilities(logits, member.spec.sharpness)
                mean += chances
                if self._uncertainty == "models" and sure is not None:
                    spread += chances
                    sure += self._entropy(chances)
        mean *= np.float32(1 / len(self.members))
        out[:, :count] = self._logits(mean) if shared else logits
        if self._uncertainty == "entropy":
            out[:, count] = self._entropy(mean)
        elif sure is not None:
            said = np.float32(len(self.members) * len(self._symmetries))
            out[:, count] = np.maximum(self._entropy(spread / said) - sure / said, 0)

    def _buffers(self, out: Float32, count: int) -> tuple[Float32, ...]:
        """Four arrays of logits, of this thread; the last is cleared."""
        made: Any = getattr(self._own, "made", None)
        if made is None:
            made = self._own.made = tuple(np.empty((len(out), count, *out.shape[2:]), np.float32) for _ in range(4))
        made[3][...] = 0
        return tuple(made)

    def _probabilities(self, logits: Float32, sharpness: float) -> Float32:
        if self.spec.activation == "sigmoid":
            found = logits * np.float32(-sharpness)
            with np.errstate(over="ignore"):  # of a number far below 0: infinity, the probability is 0
                np.exp(found, out=found)
            found += 1
            return np.asarray(np.divide(1, found, out=found))
        found = logits - logits.max(axis=1, keepdims=True)
        found *= np.float32(sharpness)
        np.exp(found, out=found)
        found /= found.sum(axis=1, keepdims=True)
        return np.asarray(found, np.float32)

    def _logits(self, chances: Float32) -> Float32:
        """Numbers that have these probabilities."""
        logs = _log(chances)
        if self.spec.activation == "sigmoid":
            logs -= _log(1 - chances)
        return logs

    def _entropy(self, chances: Float32) -> Float32:
        """Bits of each pixel: of one choice, or of sigmoids one question each."""
        found = -_spread(chances)
        if self.spec.activation == "sigmoid":
            found -= _spread(1 - chances)
        return np.asarray(np.maximum(found, 0) * _BITS, np.float32)

    def versions(self) -> Mapping[str, str]:
        """Those of all members."""
        return {name: version for one in self.members for name, version in one.versions().items()}

    def close(self) -> None:
        """Close all members."""
        for one in self.members:
            one.close()


def _log(chances: Float32) -> Float32:
    """Of the probabilities, none of which is taken for less than the least."""
    found: Float32 = np.maximum(chances, _LEAST)
    return np.asarray(np.log(found, out=found))


def _spread(chances: Float32) -> Float32:
    """The sum over the classes of p log p."""
    found = _log(chances)
    found *= chances
    return np.asarray(found.sum(axis=1))


def _between(first: ModelSpec, spec: ModelSpec) -> tuple[Float32, Float32] | None:
    """From what the first model takes to what another does: gain and shift of each channel; None where it is one."""
    mine, its = first.normalization, spec.normalization
    if mine.kind != "constants" or (mine.mean, mine.std) == (its.mean, its.std):
        return None
    each = (-1, *(1 for _ in first.axes))
    mean, std, other, spread = (np.reshape(values, each) for values in (mine.mean, mine.std, its.mean, its.std))
    return np.asarray(std / spread, np.float32), np.asarray((mean - other) / spread, np.float32)
