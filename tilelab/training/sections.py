"""The sections of recipes: every key, its default and what it may be.

Every default is written here and nowhere else.  A value that cannot be is refused when the section is made, with a
message that names the key.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tilelab.errors import InputError
from tilelab.evaluation.label_map import IGNORE as IGNORE
from tilelab.evaluation.label_map import LabelMap
from tilelab.geometry import Window
from tilelab.spec import Activation


def check(condition: bool, message: str) -> None:
    """Refuse a recipe with `message`, which names the key."""
    if not condition:
        raise ValueError(message)


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network: its name (`tilelab.models.build_model`), input channels and the architecture's own options.

    architecture
        Its name, with an encoder behind a colon where it has one: ``unet:resnet18``.
    channels
        Of the input.
    options
        Of the architecture, such as ``widths``.
    neighbours
        Slices on either side of the segmented one that are channels of the input: N make 2 N + 1 channels.
    weights
        File of pre-trained encoder weights, relative to the data folder; ``imagenet`` takes those that an installed
        package brings (extra ``pretrained``); empty starts from chance.
    checkpoint
        Checkpoint of `tilelab train` to fine-tune, relative to the data folder: the whole network begins with it, but
        for what has another shape (the last layer, where the classes are others).
    """

    architecture: str
    channels: int = 1
    neighbours: int = 0
    options: dict[str, Any] = {}
    weights: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        check(
            not (self.weights and self.checkpoint), "weights and checkpoint both say what to begin with: leave one out"
        )
        check(self.channels >= 1, f"channels must be at least 1, not {self.channels}")
        check(self.neighbours >= 0, f"neighbours must be at least 0, not {self.neighbours}")
        wanted = 2 * self.neighbours + 1
        check(
            not self.neighbours or self.channels == wanted,
            f"channels must be {wanted} with neighbours = {self.neighbours}, not {self.channels}",
        )

    @property
    def encoder(self) -> str:
        """Its name, where the architecture has one of its own."""
        return self.architecture.partition(":")[2]


class PlainEncoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encoder to pretrain: a name of segmentation_models_pytorch, or ``tu-NAME`` of timm.

    encoder   its name
    channels  input channels; a grey image is repeated to fill them
    weights   file of encoder weights to begin with, relative to the data folder; ``imagenet`` takes an installed
              package's (extra ``pretrained``); empty starts from chance
    dropout   share of the features that are dropped before the classifier
    """

    encoder: str
    channels: int = 1
    weights: str = ""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self.channels >= 1, f"channels must be at least 1, not {self.channels}")
        check(0 <= self.dropout < 1, f"dropout must lie between 0 and 1, not {self.dropout}")


class ImageFolders(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Images in one folder per class, of any size and format that `open_image` reads; stacks count plane by plane.

    train       folder of the classes' folders, relative to the data folder
    validation  likewise; empty holds back a part of `train`
    held_back   share of each class's images that is held back, at least one, chosen by the seed
    """

    train: str
    validation: str = ""
    held_back: float = 0.1

    def __post_init__(self) -> None:
        check(0 < self.held_back < 1, f"held_back must lie between 0 and 1, not {self.held_back}")


class Moco(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pre-training without labels by momentum contrast; the defaults are MoCo v2's.

    features     length of the vectors that are compared
    queue        vectors of earlier images that are kept to differ from
    momentum     share that the encoder which makes them keeps of itself, every step
    temperature  of the similarities
    """

    features: int = 128
    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2

    def __post_init__(self) -> None:
        check(self.features >= 2, f"features must be at least 2, not {self.features}")
        check(0 <= self.momentum < 1, f"momentum must lie between 0 and 1, not {self.momentum}")
        check(self.temperature > 0, f"temperature must be positive, not {self.temperature}")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One set of images with masks.

    images, masks
        Folders (paired by name, without suffix and endings such as ``_mask``), or one image each; relative to the data
        folder.  Anything that `open_image` reads; stacks count plane by plane.
    labels
        Which stored value or colour is which class: ``255:1``, ``0-127:1,128-255:0`` or ``#0000ff:1,#ff0000:2``.
        ``255:ignore`` leaves pixels out, ``*:1`` says what all others are; unless it does, they are class 0, and
        training says so.  Empty: the stored values are the classes.
    axes, mask_axes
        What the stored axes of images and masks mean, of ``t c z y x s``, where they do not say.
    series, mask_series
        Which of several images in each file of images and masks, by number from 0 or by name.
    planes
        First plane and the one after the last, of each stack.
    limit
        Use only the first so many planes, in the order of their names; 0 uses all.
    """

    images: str
    masks: str
    labels: str = ""
    axes: str | None = None
    mask_axes: str | None = None
    planes: tuple[int, int] | None = None
    limit: int = 0
    series: str | None = None
    mask_series: str | None = None

    def __post_init__(self) -> None:
        check(self.limit >= 0, f"limit must be at least 0, not {self.limit}")
        try:
            LabelMap.parse(self.labels or "*:0")
        except InputError as error:
            raise ValueError(str(error)) from error
        start, stop = self.planes or (0, 1)
        check(0 <= start < stop, f"planes must be the first and the one after the last, not {[start, stop]}")


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
        check(self.crop >= 16, f"crop must be at least 16 px, not {self.crop}")
        check(self.batch >= 1, f"batch must be at least 1, not {self.batch}")
        check(0 <= self.balance <= 1, f"balance must lie between 0 and 1, not {self.balance}")


class ImageSampling(Sampling, frozen=True, forbid_unknown_fields=True):
    """How crops of images with one class each are drawn; `balance` is the share whose class has equal chances.

    side  pixels that the shorter side of every image is brought to first; 0 leaves images at their size
    """

    crop: int = 224
    batch: int = 32
    balance: float = 0.0
    side: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.side >= 0, f"side must be at least 0, not {self.side}")


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Random changes of each crop; a zero (or a range of one point) switches one off.

    Intensities are in units of the data type's full scale (255 for uint8).

    flips       mirror, and turn by quarters, each of the 8 symmetries equally often; or mirror only, ``horizontal``
                (left and right change places), ``vertical`` or ``both``, with an even chance each
    rotation    greatest turn by any angle, degrees, either way
    scale       range of the magnification, drawn evenly on a logarithmic axis
    contrast    range of the factor about the crop's mean, drawn likewise
    brightness  greatest shift, either way
    gamma       range of the exponent, drawn likewise
    blur        greatest standard deviation of a Gaussian, px; drawn evenly from 0
    sharpen     greatest amount of unsharp masking
    noise       greatest standard deviation of added Gaussian noise
    chance      probability that each of rotation, scale, blur, sharpen and noise is applied at all
    """

    flips: bool | Literal["horizontal", "vertical", "both"] = True
    rotation: float = 0.0
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
            check(0 < low <= high, f"{name} must be a range of positive numbers, low first, not {[low, high]}")
        check(0 <= self.rotation <= 180, f"rotation must lie between 0 and 180 degrees, not {self.rotation}")
        for name in ("brightness", "blur", "sharpen", "noise"):
            check(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
        check(0 <= self.chance <= 1, f"chance must lie between 0 and 1, not {self.chance}")


LossKind = Literal["cross-entropy", "balanced-cross-entropy", "dice", "focal"]


class LossTerm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One term of the loss; the loss is the weighted sum of all.

    kind           what it is
    weight         of this term
    class_weights  per output of the network, for cross-entropy and focal; empty weighs all alike
    gamma          exponent of the focal loss
    boundary       how much more pixels within `reach` pixels of another class weigh: 4 makes them count five times;
                   for all but Dice
    reach          pixels
    """

    kind: LossKind
    weight: float = 1.0
    boundary: float = 0.0
    reach: int = 2
    class_weights: tuple[float, ...] = ()
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check(self.weight > 0, f"weight of {self.kind} must be positive, not {self.weight}")
        check(self.gamma >= 0, f"gamma must be at least 0, not {self.gamma}")
        check(self.boundary >= 0, f"boundary must be at least 0, not {self.boundary}")
        check(not self.boundary or self.kind != "dice", "boundary weighs pixels, which dice has none of: leave it out")
        check(1 <= self.reach <= 64, f"reach must be 1 to 64 px, not {self.reach}")
        check(all(w >= 0 for w in self.class_weights), "class_weights must not be negative")
        check(not self.class_weights or any(self.class_weights), "class_weights must not all be 0")


class Optimizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The optimiser; `betas` are Adam's, `momentum` is SGD's.

    kind          which one
    rate          learning rate at its greatest
    momentum      of SGD
    betas         of Adam and AdamW
    weight_decay  how fast weights shrink
    """

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    rate: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0
    """Greatest norm of the gradient; 0 does not clip."""
    encoder: float = 1.0
    """Factor of the rate for the encoder's weights, such as 0.1 where they are pre-trained and the rest is not."""

    def __post_init__(self) -> None:
        check(self.rate > 0, f"rate must be positive, not {self.rate}")
        check(0 <= self.momentum < 1, f"momentum must lie between 0 and 1, not {self.momentum}")
        check(all(0 <= b < 1 for b in self.betas), f"betas must lie between 0 and 1, not {list(self.betas)}")
        check(self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}")
        check(self.encoder > 0, f"encoder must be a positive factor, not {self.encoder}")
        check(self.clip >= 0, f"clip must be at least 0, not {self.clip}")


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the learning rate falls from the optimiser's `rate`, as a function of the step.

    kind     how it falls
    factor   of each fall, for step
    patience  validations without a better score, for plateau
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
        check(self.warmup >= 0, f"warmup must be at least 0, not {self.warmup}")
        check(self.least >= 0, f"least must be at least 0, not {self.least}")
        check(self.every >= 1, f"every must be at least 1, not {self.every}")
        check(0 < self.factor < 1, f"factor must lie between 0 and 1, not {self.factor}")
        check(self.patience >= 1, f"patience must be at least 1, not {self.patience}")
        check(all(r > 0 for r in self.rates), f"rates must be positive, not {list(self.rates)}")
        check(not self.rates or self.kind == "plateau", f"rates belong to plateau, not to {self.kind}")


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long, and with what arithmetic.

    steps       optimiser steps in all
    validate    steps between validations; the best is kept, by mean IoU or, pretraining, by accuracy
    patience    validations without a better score after which training ends; 0 goes on to the last step
    precision   arithmetic of the forward pass
    accumulate  pieces that a batch is cut into, to save memory; losses and batch statistics are those of the pieces
    frozen      steps in which the encoder stays as it is, for training in two stages: first the rest, then all
    average     decay of the running average of the weights, which is what is validated and kept; 0 keeps the raw ones
    compile     translate the network before it is trained, which takes a C++ compiler and a minute
    device      ``auto`` is a GPU where there is one
    threads     CPU threads; 0 leaves the choice to torch
    """

    steps: int
    validate: int = 100
    patience: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    frozen: int = 0
    average: float = 0.0
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        check(self.validate >= 1, f"validate must be at least 1, not {self.validate}")
        check(0 <= self.average < 1, f"average must lie between 0 and 1, not {self.average}")
        check(self.patience >= 0, f"patience must be at least 0, not {self.patience}")
        check(0 <= self.frozen < self.steps, f"frozen must be at least 0 and less than steps, not {self.frozen}")
        check(self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}")


class Inference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the trained network is to be used; goes into its description.  Sizes in pixels.

    tile
        Side of a tile.
    overlap
        Of neighbouring tiles.
    window
        How the tiles' edges fade where they are blended.
    activation
        ``softmax``: one output per class, of which one is true.  ``sigmoid``: one output per class except the
        background, each a yes or no of its own; background is where none says yes.
    """

    tile: int = 512
    overlap: int = 128
    window: Window = "hann"
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        check(self.tile >= 16, f"tile must be at least 16 px, not {self.tile}")
        check(0 <= self.overlap < self.tile, f"overlap {self.overlap} must be at least 0 and less than {self.tile}")


class Paper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a recipe follows, and where it does not: said before a training starts.

    title       of the paper; empty where there is none
    states      what it says, by keys of the recipe such as ``optimizer.rate``; values that differ are deviations
    deviations  what else is done otherwise, in words
    silent      what it does not say, and so was chosen here
    """

    title: str = ""
    states: dict[str, Any] = {}
    deviations: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
