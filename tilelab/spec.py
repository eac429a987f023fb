"""What a model says of itself: one JSON document, stored under the key ``tilelab`` in an engine file's metadata.

A model with a spec runs with no flags.  `ModelSpec.from_json` refuses unknown keys and impossible values by name, so a
file from a newer tilelab is never half understood.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec

from tilelab.errors import ModelError
from tilelab.geometry import WINDOWS, Window

METADATA_KEY = "tilelab"
SCHEMA = 1

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Activation = Literal["softmax", "sigmoid"]
OutputKind = Literal["logits", "probabilities", "labels", "map"]
NormalizationKind = Literal["constants", "mean-std", "percentile", "min-max"]
Statistics = Literal["stack", "slice"]

PIXEL_SIZE_TOLERANCE = 0.1
"""How far pixels may be from the size that a network was trained on, as a share of it."""

_LATER = (
    "outputs",
    "per",
    "clip",
    "home",
    "seams",
    "confidence",
)  # of the fields: earlier files lack them, and results know their models by the text
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")

PALETTE = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Colours of classes that have none of their own, background first; Okabe and Ito's, for any colour vision."""


def same_pixel_size(sizes: Sequence[float], others: Sequence[float]) -> bool:
    """Whether pixels of these sizes, along as many axes, are alike enough for one network."""
    return all(abs(a / b - 1) <= PIXEL_SIZE_TOLERANCE for a, b in zip(sizes, others, strict=True))


class ClassInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One class: its name and its display colour, ``#rrggbb``.

    name
        As tables, pictures and viewers give it.
    color
        As pictures and viewers draw it, ``#rrggbb``.
    """

    name: str
    color: str

    def __post_init__(self) -> None:
        if not _COLOR.fullmatch(self.color):
            raise ValueError(f"colour {self.color!r} of class {self.name!r} is not of the form #rrggbb")


def default_colors(count: int) -> tuple[str, ...]:
    """`count` colours that can be told apart, black first."""
    colors = list(PALETTE[:count])
    for i in range(count - len(colors)):
        rgb = colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.75 - 0.25 * (i % 2), 0.95)  # the golden angle
        colors.append("#" + "".join(f"{round(255 * v):02x}" for v in rgb))
    return tuple(colors)


class Normalization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How raw intensities become the network's input: ``(value - mean) / std``, one entry per input channel.

    kind
        ``constants``: `mean` and `std` are given, in raw units of `dtype` (0..255 for uint8).
        ``mean-std``: they are those of the image, gathered once before the sweep.
        ``percentile``: the image's `low` and `high` percentiles map to 0 and 1.
        ``min-max``: the image's least and greatest intensity do.
    mean, std
        Of the training's intensities, for ``constants``.
    dtype
        Type whose units `mean` and `std` have: images of another need to say what is black and white.
    low, high
        Percentiles, for ``percentile``.
    per
        Whose statistics they are: those of the whole ``stack``, or each ``slice`` its own.
    clip
        Normalised intensities below the first and above the second number become that number; None keeps them.
    """

    kind: NormalizationKind = "constants"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (255.0,)
    dtype: str = "uint8"
    low: float = 0.5
    high: float = 99.5
    per: Statistics = "stack"
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind == "constants":
            if not self.mean or len(self.mean) != len(self.std):
                raise ValueError(f"normalization has {len(self.mean)} means and {len(self.std)} stds")
            if any(not s > 0 for s in self.std):
                raise ValueError(f"normalization std must be positive, not {self.std}")
        if self.kind == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, not {self.low}, {self.high}")
        if self.clip is not None and not -math.inf < self.clip[0] < self.clip[1] < math.inf:
            raise ValueError(f"intensities are cut off at a lower and a higher number, not at {self.clip}")
        if self.per == "slice" and self.kind == "constants":
            raise ValueError("constants are the same for every slice: per must be stack")


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """An output of the network that is used.

    name
        Of the network's tensor; empty for its only one.
    kind
        ``logits`` or ``probabilities`` of the classes, their ``labels`` (indices), or a ``map`` of numbers, kept
        as they are.  None: one of the first two, as graph and trial run tell.
    channels
        Of a map; those of the others follow from the classes.
    scale
        Pixels of the output for each of the input, per axis: 0.5 where it is halved; empty means 1.
    halo
        Pixels of the input at either end of a tile that have none in the output (valid convolutions), per axis; empty
        means none.
    step
        Of labels: the number that stands for class 1, twice that for class 2 (255 where a mask is 0 and 255).
    thresholds
        Probabilities from which on a class with a sigmoid counts, one for all or one per output; empty means 0.5.
    """

    name: str = ""
    kind: OutputKind | None = None
    channels: int = 1
    scale: tuple[float, ...] = ()
    halo: tuple[int, ...] = ()
    step: int = 1
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"output {self.name!r} has {self.channels} channels: a map has at least one")
        if any(not s > 0 for s in self.scale) or any(h < 0 for h in self.halo):
            raise ValueError(f"output {self.name!r} has scale {self.scale} and halo {self.halo}: these are positive")
        if self.step < 1:
            raise ValueError(f"output {self.name!r} has labels in steps of {self.step}: they are at least 1")
        if any(not 0 < t < 1 for t in self.thresholds):
            raise ValueError(f"thresholds {self.thresholds} are probabilities: give numbers between 0 and 1")


class Home(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What the images that a model was trained on look like, in the features of `tilelab.run.kind.home`.

    mean
        Of their blocks' features, every image counting the same.
    covariance
        Of the same, row by row up to the diagonal.
    limit
        Distance from which on an image is foreign.
    images
        How many there were.
    others
        Means of what is not home: of the training images inverted, at other scales, with noise, and of other kinds.
    bounds
        How far towards each of these an image of home lies at most, in spreads.
    """

    mean: tuple[float, ...]
    covariance: tuple[float, ...]
    limit: float
    images: int
    others: tuple[tuple[float, ...], ...] = ()
    bounds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if 2 * len(self.covariance) != len(self.mean) * (len(self.mean) + 1):
            raise ValueError(f"home has {len(self.mean)} features and {len(self.covariance)} covariances")
        if len(self.bounds) != len(self.others) or any(len(other) != len(self.mean) for other in self.others):
            raise ValueError("home has a bound for each other kind, and as many features of it as of itself")
        if any(not bound > 0 for bound in self.bounds):
            raise ValueError(f"bounds {self.bounds} of home must be positive")


class Seams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How far tiles are from the whole image at once, as it was measured on real images.

    overlap
        Of neighbouring tiles, in pixels, ascending.
    labels
        Labels that differ for each pixel of a seam's length, by overlap: times the seams' length in an area, and over
        the area, it is the share of labels that differ there.
    probabilities
        Greatest difference of a probability, by overlap; empty where it was not measured.
    shifted
        Share of labels that change when the tiles are moved by half a step: of a model whose output depends on its
        whole tile, for which there is no other yardstick.
    """

    overlap: tuple[int, ...] = ()
    labels: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    shifted: float | None = None

    def __post_init__(self) -> None:
        if list(self.overlap) != sorted(set(self.overlap)) or any(o < 0 for o in self.overlap):
            raise ValueError(f"overlaps {self.overlap} of seams must ascend from 0")
        if len(self.labels) != len(self.overlap) or len(self.probabilities) not in (0, len(self.overlap)):
            raise ValueError("seams need a share of labels for each overlap")
        if any(not share >= 0 for share in (*self.labels, *self.probabilities, self.shifted or 0.0)):
            raise ValueError("shares and differences at seams are not negative")

    def per_pixel(self, overlap: int) -> float:
        """Labels that differ for each pixel of a seam at an overlap; between two that were measured the greater."""
        known = [share for o, share in zip(self.overlap, self.labels, strict=True) if o <= overlap]
        return known[-1] if known else (max(self.labels) if self.labels else 0.0)


class Confidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How a model's probabilities become such that can be believed: of those that say 0.9, nine of ten are right.

    temperature
        Logits are divided by it before they become probabilities (Guo et al., 2017, arXiv 1706.04599).
    images
        On how many it was found.
    ece
        Expected calibration error without and with it, each image by what the others teach; empty where not measured.
    """

    temperature: float
    images: int = 0
    ece: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be positive")
        if len(self.ece) not in (0, 2):
            raise ValueError(f"ece {self.ece} is two numbers: without and with the temperature")


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `tilelab infer` needs to know of a model.

    Per-axis values are in the order of `axes` and in pixels.

    schema
        Version of this description.
    name
        Of the model; results are called after it.
    architecture
        Of the network, for people.
    axes
        Of a tile: 2-D networks take planes, 3-D ones blocks.
    activation
        What makes probabilities of the network's logits.
    classes
        All classes, background first; labels are indices into it.  With ``softmax`` the network has one output per
        class; with ``sigmoid`` one per class except the first, which is where every output is below 0.  None where
        the network gives maps alone.
    outputs
        Those that are used, in the order in which their channels are blended: at most one of the classes, first, and
        any number of maps.
    channels
        Input channels of the network; a grey image is repeated to fill them.
    neighbours
        How many slices on either side a 2-D network sees beside the one it segments (2.5-D): its ``2 n + 1`` channels
        are slices ``z - n`` to ``z + n`` of a grey stack, reflected at the first and the last.
    tile
        Tile the model was trained or exported for.  With `tile_fixed` no other is allowed; otherwise any multiple of
        `stride` that is at least `tile_min` is.
    tile_fixed
        Whether `tile` is the only one.
    tile_min
        Least tile where it is not.
    overlap
        Of neighbouring tiles, where nobody says another.
    window
        How the tiles' edges fade where they are blended.
    stride
        Total stride of the network: tile positions and sizes are multiples of it.
    receptive_field
        Extent of the input that one output pixel sees; None when it sees the whole tile (pyramid pooling, attention).
    seams
        How far tiles are from the whole image, by overlap; None where it was not measured.
    precisions
        Numerical precisions that passed the parity gate; ``auto`` chooses among them only.
    pixel_size_nm
        Pixel size of the training images; None when unknown or irrelevant.
    home
        What the training images look like; None where nobody has said.
    confidence
        How its probabilities are calibrated; None where they are taken as the network gives them.
    training
        Free-form provenance: data, licence, commit, scores.
    """

    schema: int = SCHEMA
    name: str = ""
    architecture: str = ""
    axes: Literal["yx", "zyx"] = "yx"
    channels: int = 1
    neighbours: int = 0
    classes: tuple[ClassInfo, ...] = ()
    outputs: tuple[Output, ...] = (Output(),)
    activation: Activation = "softmax"
    normalization: Normalization = Normalization()
    tile: tuple[int, ...]
    tile_fixed: bool = True
    tile_min: tuple[int, ...] | None = None
    overlap: tuple[int, ...]
    window: Window = "hann"
    stride: int = 1
    receptive_field: int | None = None
    seams: Seams | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    pixel_size_nm: tuple[float, ...] | None = None
    home: Home | None = None
    confidence: Confidence | None = None
    training: dict[str, Any] = {}

    def __post_init__(self) -> None:
        n = len(self.axes)
        if self.schema != SCHEMA:
            raise ValueError(
                f"model description has schema {self.schema}, this tilelab reads {SCHEMA}: upgrade tilelab"
            )
        self._check_outputs(n)
        if self.classified and len(self.classes) < 2:
            raise ValueError("a model needs at least two classes, background first")
        if len(self.classes) > 256:
            raise ValueError(f"{len(self.classes)} classes do not fit uint8 labels (at most 256)")
        if self.window not in WINDOWS:
            raise ValueError(f"unknown window {self.window!r}: choose one of {', '.join(WINDOWS)}")
        for name in ("tile", "overlap", "tile_min", "pixel_size_nm"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name} has {len(value)} entries for axes {self.axes!r}: give {n}")
        if any(not 0 < size < math.inf for size in self.pixel_size_nm or ()):
            raise ValueError(f"pixel_size_nm {self.pixel_size_nm} must be positive numbers of nanometres")
        if self.channels < 1 or self.stride < 1:
            raise ValueError("channels and stride must be at least 1")
        if self.neighbours < 0 or (self.neighbours and self.axes != "yx"):
            raise ValueError(f"neighbours {self.neighbours} are for 2-D models (axes yx), and at least 0")
        if self.neighbours and self.channels != 2 * self.neighbours + 1:
            raise ValueError(
                f"{self.neighbours} neighbours on either side make {2 * self.neighbours + 1} channels, "
                f"the model has {self.channels}"
            )
        if any(t < 1 or (t > 1 and t % self.stride) for t in self.tile):
            raise ValueError(f"tile {self.tile} is not a multiple of stride {self.stride}")
        if any(not 0 <= o < t for o, t in zip(self.overlap, self.tile, strict=True)):
            raise ValueError(f"overlap {self.overlap} must be at least 0 and less than the tile {self.tile}")
        if self.normalization.kind == "constants" and len(self.normalization.mean) not in (1, self.channels):
            raise ValueError(f"normalization has {len(self.normalization.mean)} channels, the model {self.channels}")
        if not self.precisions:
            raise ValueError("precisions must name at least one")

    def _check_outputs(self, rank: int) -> None:
        names = [output.name for output in self.outputs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"outputs {names} must be at least one, each with a name of its own")
        if any(output.kind != "map" for output in self.outputs[1:]):
            raise ValueError("only the first output can be of the classes, the others are maps")
        for output in self.outputs:
            if any(given and len(given) != rank for given in (output.scale, output.halo)):
                raise ValueError(f"scale and halo of output {output.name!r} need {rank} entries for axes {self.axes!r}")
        first = self.outputs[0]
        if first.thresholds and (first.kind in ("map", "labels") or self.activation != "sigmoid"):
            raise ValueError("thresholds are for classes with a sigmoid each")
        if len(first.thresholds) not in (0, 1, self.values_of(first)):
            raise ValueError(
                f"{len(first.thresholds)} thresholds for {self.values_of(first)} outputs: give 1 or as many"
            )
        if any(2 * h >= t for h, t in zip(self.halo, self.tile, strict=True)):
            raise ValueError(f"tile {self.tile} leaves nothing between halos of {self.halo}")

    @property
    def classified(self) -> bool:
        """Whether the first output is of the classes."""
        return self.outputs[0].kind != "map"

    @property
    def maps(self) -> tuple[Output, ...]:
        """The outputs that are kept as numbers."""
        return self.outputs[self.classified :]

    @property
    def overlapping(self) -> bool:
        """Whether several classes can be true of one pixel."""
        first = self.outputs[0]
        return self.activation == "sigmoid" and first.kind not in ("map", "labels") and self.class_values > 1

    def values_of(self, output: Output) -> int:
        """The channels of an output."""
        if output.kind == "map":
            return output.channels
        return 1 if output.kind == "labels" else len(self.classes) - (self.activation == "sigmoid")

    @property
    def class_values(self) -> int:
        """The channels of the first output."""
        return self.values_of(self.outputs[0])

    @property
    def values(self) -> int:
        """Numbers per pixel: the channels of all outputs together (K)."""
        return sum(map(self.values_of, self.outputs))

    @property
    def halo(self) -> tuple[int, ...]:
        """Pixels at either end of a tile that not all outputs have."""
        found = [output.halo for output in self.outputs if output.halo]
        return tuple(map(max, zip(*found, strict=True))) if found else (0,) * len(self.axes)

    @property
    def core(self) -> tuple[int, ...]:
        """The extent of what is known after a tile: it without its halo."""
        return tuple(t - 2 * h for t, h in zip(self.tile, self.halo, strict=True))

    @property
    def core_overlap(self) -> tuple[int, ...]:
        """The least overlap of neighbouring cores, whose tiles overlap by `overlap` and their halos at least."""
        return tuple(max(0, o - 2 * h) for o, h in zip(self.overlap, self.halo, strict=True))

    @property
    def sharpness(self) -> float:
        """What logits are multiplied by before they become probabilities."""
        return 1.0 if self.confidence is None else 1 / self.confidence.temperature

    @property
    def plain(self) -> bool:
        """Whether the network gives one output of logits or probabilities as large as its tile."""
        first = self.outputs[0]
        same = not any(first.halo) and set(first.scale) <= {1.0}
        return len(self.outputs) == 1 and first.kind in (None, "logits", "probabilities") and same

    def to_json(self) -> str:
        """The document as stored in a model file: keys in a fixed order, later ones where they say something."""
        document = msgspec.to_builtins(self)
        for part, kind, names in ((document, ModelSpec, _LATER), (document["normalization"], Normalization, _LATER)):
            for known in msgspec.structs.fields(kind):
                if known.name in names and part[known.name] == msgspec.to_builtins(known.default):
                    del part[known.name]
        return msgspec.json.encode(document, order="sorted").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelSpec:
        """Parse and check a document.

        Raises:
            ModelError: unknown keys, missing keys or impossible values; the message names them.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ModelError(f"the model's description is not valid: {error}") from error


msgspec.json.Decoder(ModelSpec)  # known once, here: two threads that ask first crash msgspec


def parse_precision(text: str) -> Precision:
    """`text` as a precision, or a `ModelError` listing the known ones."""
    for known in PRECISIONS:
        if text == known:
            return known
    raise ModelError(f"unknown precision {text!r}: choose one of {', '.join(PRECISIONS)}")
