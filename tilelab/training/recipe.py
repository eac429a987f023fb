"""What to train, on what, how: one TOML file, checked before anything starts.

Unknown keys and impossible values are errors that name the key.  Every default is written here and nowhere else; the
recipe that a checkpoint carries has all of them filled in.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from tilelab.errors import InputError
from tilelab.geometry import Window
from tilelab.spec import Activation, ClassInfo, Normalization

IGNORE = 255
"""Mask value that takes no part in the loss or the scores."""


class RecipeError(InputError):
    """A recipe is missing, unreadable or asks for something impossible; the key is named."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network: its name (`tilelab.models.build_model`), input channels and the architecture's own options.

    weights
        File of pre-trained encoder weights, relative to the data folder; empty starts from chance.
    """

    architecture: str
    channels: int = 1
    options: dict[str, Any] = {}
    weights: str = ""

    def __post_init__(self) -> None:
        _check(self.channels >= 1, f"channels must be at least 1, not {self.channels}")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One set of images with masks.

    images, masks
        Folders (paired by name, without suffix and endings such as ``_mask``), or one image each; relative to the data
        folder.  Anything that `open_image` reads; stacks count plane by plane.
    labels
        Which stored value or colour is which class, ``255:1`` or ``#0000ff:1,#ff0000:2``; all others are class 0.
        Empty: the stored values are the classes.
    planes
        First plane and the one after the last, of each stack.
    limit
        Use only the first so many planes, in the order of their names; 0 uses all.
    """

    images: str
    masks: str
    labels: str = ""
    planes: tuple[int, int] | None = None
    limit: int = 0

    def __post_init__(self) -> None:
        _check(self.limit >= 0, f"limit must be at least 0, not {self.limit}")


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How crops are drawn.

    crop     pixels of the square that the network sees
    batch    crops per step
    balance  share of crops placed on a pixel of a class drawn with equal chances; the others lie anywhere
    """

    crop: int = 256
    batch: int = 8
    balance: float = 0.5

    def __post_init__(self) -> None:
        _check(self.crop >= 16, f"crop must be at least 16 px, not {self.crop}")
        _check(self.batch >= 1, f"batch must be at least 1, not {self.batch}")
        _check(0 <= self.balance <= 1, f"balance must lie between 0 and 1, not {self.balance}")


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Random changes of each crop; a zero (or a range of one point) switches one off.

    Intensities are in units of the data type's full scale (255 for uint8).

    flips       mirror, and turn by quarters, each of the 8 symmetries equally often
    scale       range of the magnification, drawn evenly on a logarithmic axis
    contrast    range of the factor about the crop's mean, drawn likewise
    brightness  greatest shift, either way
    gamma       range of the exponent, drawn likewise
    blur        greatest standard deviation of a Gaussian, px; drawn evenly from 0
    sharpen     greatest amount of unsharp masking
    noise       greatest standard deviation of added Gaussian noise
    chance      probability that each of scale, blur, sharpen and noise is applied at all
    """

    flips: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    blur: float = 0.0
    sharpen: float = 0.0
    noise: float = 0.0
    chance: float = 0.5

    def __post_init__(self) -> None:
        for name in ("scale", "contrast", "gamma"):
            low, high = getattr(self, name)
            _check(0 < low <= high, f"{name} must be a range of positive numbers, low first, not {[low, high]}")
        for name in ("brightness", "blur", "sharpen", "noise"):
            _check(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
        _check(0 <= self.chance <= 1, f"chance must lie between 0 and 1, not {self.chance}")


LossKind = Literal["cross-entropy", "balanced-cross-entropy", "dice", "focal"]


class LossTerm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One term of the loss; the loss is the weighted sum of all.

    class_weights  per class, for cross-entropy and focal; empty weighs all alike
    gamma          exponent of the focal loss
    """

    kind: LossKind
    weight: float = 1.0
    class_weights: tuple[float, ...] = ()
    gamma: float = 2.0

    def __post_init__(self) -> None:
        _check(self.weight > 0, f"weight of {self.kind} must be positive, not {self.weight}")
        _check(self.gamma >= 0, f"gamma must be at least 0, not {self.gamma}")
        _check(all(w >= 0 for w in self.class_weights), "class_weights must not be negative")


class Optimizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The optimiser; `betas` are Adam's, `momentum` is SGD's."""

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    rate: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0
    """Greatest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        _check(self.rate > 0, f"rate must be positive, not {self.rate}")
        _check(self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}")
        _check(self.clip >= 0, f"clip must be at least 0, not {self.clip}")


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the learning rate falls from the optimiser's `rate`, as a function of the step.

    warmup   steps of linear rise before anything else
    least    lowest rate of poly and cosine
    power    exponent of poly
    every    steps between falls by `factor`, for step
    rates    rates after the first, for plateau: the next one after `patience` validations without a better score;
             when the last has had its turn, training ends
    """

    kind: Literal["constant", "poly", "step", "cosine", "plateau"] = "constant"
    warmup: int = 0
    least: float = 0.0
    power: float = 0.9
    every: int = 1000
    factor: float = 0.1
    rates: tuple[float, ...] = ()
    patience: int = 30

    def __post_init__(self) -> None:
        _check(self.warmup >= 0, f"warmup must be at least 0, not {self.warmup}")
        _check(self.every >= 1, f"every must be at least 1, not {self.every}")
        _check(0 < self.factor < 1, f"factor must lie between 0 and 1, not {self.factor}")
        _check(self.patience >= 1, f"patience must be at least 1, not {self.patience}")
        _check(all(r > 0 for r in self.rates), f"rates must be positive, not {list(self.rates)}")
        _check(not self.rates or self.kind == "plateau", f"rates belong to plateau, not to {self.kind}")


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long, and with what arithmetic.

    steps       optimiser steps in all
    validate    steps between validations; the best by mean IoU is kept
    patience    validations without a better score after which training ends; 0 goes on to the last step
    precision   arithmetic of the forward pass
    accumulate  pieces that a batch is cut into, to save memory; losses and batch statistics are those of the pieces
    average     decay of the running average of the weights, which is what is validated and kept; 0 keeps the raw ones
    device      ``auto`` is a GPU where there is one
    threads     CPU threads; 0 leaves the choice to torch
    """

    steps: int
    validate: int = 100
    patience: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    average: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        _check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        _check(self.validate >= 1, f"validate must be at least 1, not {self.validate}")
        _check(0 <= self.average < 1, f"average must lie between 0 and 1, not {self.average}")
        _check(self.patience >= 0, f"patience must be at least 0, not {self.patience}")
        _check(self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}")


class Inference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the trained network is to be used; goes into its description.  Sizes in pixels."""

    tile: int = 512
    overlap: int = 128
    window: Window = "hann"
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        _check(0 <= self.overlap < self.tile, f"overlap {self.overlap} must be at least 0 and less than {self.tile}")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole training.

    provenance  free text that goes into the model's description: data, licence, source
    """

    name: str
    seed: int = 0
    provenance: dict[str, str] = {}
    network: Network
    classes: tuple[ClassInfo, ...]
    train: Data
    validation: Data
    normalization: Normalization | None = None
    """None: the mean and standard deviation of the training images' pixels."""
    pixel_size_nm: float | None = None
    sampling: Sampling = Sampling()
    augmentation: Augmentation = Augmentation()
    loss: tuple[LossTerm, ...] = (LossTerm(kind="cross-entropy"),)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    run: Run
    inference: Inference = Inference()

    def __post_init__(self) -> None:
        _check(len(self.classes) >= 2, "classes must name at least two, background first")
        _check(len(self.loss) >= 1, "loss must have at least one term")
        for term in self.loss:
            _check(
                len(term.class_weights) in (0, len(self.classes)),
                f"class_weights of {term.kind} has {len(term.class_weights)} entries for {len(self.classes)} classes",
            )
        batch, pieces = self.sampling.batch, self.run.accumulate
        _check(batch % pieces == 0, f"batch of {batch} cannot be cut into {pieces} equal pieces (run.accumulate)")
        _check(self.inference.activation == "softmax", "training needs the activation softmax")
        _check(self.schedule.warmup < self.run.steps, f"warmup {self.schedule.warmup} must be less than run.steps")

    def to_json(self) -> str:
        """All keys, in a fixed order."""
        return msgspec.json.encode(self, order="sorted").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """Parse what `to_json` wrote.

        Raises:
            RecipeError: the text is not a recipe; the key is named.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RecipeError(f"the recipe is not valid: {error}") from error


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with tilelab, by name."""
    folder = Path(str(resources.files("tilelab") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name, and change single keys.

    Args:
        name: path of a TOML file, or the name of a shipped recipe.
        overrides: ``section.key=value`` each, the value in TOML (a bare word is taken as a string).

    Raises:
        RecipeError: no such file, not TOML, an unknown key, an impossible value.
    """
    path = Path(name)
    if not path.suffix:
        shipped = shipped_recipes()
        if name not in shipped and not path.is_file():
            raise RecipeError(f"no recipe {name!r}: give a .toml file or one of {', '.join(shipped)}")
        path = shipped.get(name, path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}: shipped ones are {', '.join(shipped_recipes())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error
    for override in overrides or []:
        _override(table, override)
    try:
        return msgspec.convert(table, type=Recipe)
    except (msgspec.ValidationError, ValueError) as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override {text!r} is not of the form section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"override {text!r}: {section!r} is not a section")
    table[last] = parsed
