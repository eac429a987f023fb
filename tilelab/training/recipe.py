"""What to train, on what, how: one TOML file for `tilelab train` or `tilelab pretrain`, checked before anything starts.

Unknown keys and impossible values are errors that name the key.  The recipe that a checkpoint carries has all defaults
filled in.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import msgspec

from tilelab.spec import ClassInfo, Normalization
from tilelab.training.recipe_file import RecipeError, read_overrides, read_recipe, shipped_recipes
from tilelab.training.sections import (
    IGNORE,
    Augmentation,
    Data,
    ImageFolders,
    ImageSampling,
    Inference,
    LossTerm,
    Moco,
    Network,
    Optimizer,
    Paper,
    PlainEncoder,
    Sampling,
    Schedule,
    Steps,
    check,
)

__all__ = [
    "IGNORE",
    "Augmentation",
    "BaseRecipe",
    "Data",
    "LossTerm",
    "Network",
    "Optimizer",
    "Pretraining",
    "Recipe",
    "RecipeError",
    "Sampling",
    "Schedule",
    "Steps",
    "load_pretraining",
    "load_recipe",
    "shipped_recipes",
]


class BaseRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all trainings have in common.

    name           of the model
    seed           of everything random
    provenance     free text that goes with the model: data, licence, source; with a ``digest`` among it, only where the
                   training data have that digest, for what is said of some data is not true of others
    normalization  left out: the mean and standard deviation of the training images' pixels
    paper          that it follows, and where it does not
    """

    name: str
    seed: int = 0
    provenance: dict[str, str] = {}
    normalization: Normalization | None = None
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    run: Steps
    paper: Paper = Paper()

    def check_together(self, sampling: Sampling, channels: int) -> None:
        """Refuse values of different sections that contradict each other."""
        batch, pieces = sampling.batch, self.run.accumulate
        check(self.seed >= 0, f"seed must be at least 0, not {self.seed}")
        check(batch % pieces == 0, f"batch of {batch} cannot be cut into {pieces} equal pieces (run.accumulate)")
        check(self.schedule.warmup < self.run.steps, f"warmup {self.schedule.warmup} must be less than run.steps")
        check(
            self.schedule.least <= self.optimizer.rate,
            f"schedule.least {self.schedule.least} must not be above optimizer.rate {self.optimizer.rate}",
        )
        check(
            math.ceil(3 * self.augmentation.blur) < sampling.crop,
            f"augmentation.blur {self.augmentation.blur} is too wide for crops of {sampling.crop} px",
        )
        given = self.normalization
        if given is not None and given.kind == "constants":
            check(
                len(given.mean) in (1, channels),
                f"normalization has {len(given.mean)} channels, the network {channels} (network.channels)",
            )

    def to_json(self) -> str:
        """All keys, in a fixed order."""
        return msgspec.json.encode(self, order="sorted").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse what `to_json` wrote.

        Raises:
            RecipeError: the text is not a recipe; the key is named.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RecipeError(f"the recipe is not valid: {error}") from error


class Recipe(BaseRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training on images with masks."""

    network: Network
    classes: tuple[ClassInfo, ...]
    train: Data
    validation: Data
    pixel_size_nm: float | None = None
    """Of the images; goes into the model, which then takes images of that size."""
    sampling: Sampling = Sampling()
    loss: tuple[LossTerm, ...] = (LossTerm(kind="cross-entropy"),)
    inference: Inference = Inference()

    def __post_init__(self) -> None:
        names = [info.name for info in self.classes]
        check(len(names) >= 2, "classes must name at least two, background first")
        check(len(names) <= IGNORE, f"{len(names)} classes are too many: the value {IGNORE} means to be ignored")
        check(len(set(names)) == len(names), f"classes have the same name: {', '.join(names)}")
        check(self.pixel_size_nm is None or self.pixel_size_nm > 0, "pixel_size_nm must be positive")
        check(len(self.loss) >= 1, "loss must have at least one term")
        for term in self.loss:
            check(
                len(term.class_weights) in (0, self.outputs),
                f"class_weights of {term.kind} has {len(term.class_weights)} entries for {self.outputs} outputs",
            )
        self.check_together(self.sampling, self.network.channels)

    @property
    def outputs(self) -> int:
        """Output channels of the network: one per class; with sigmoid none for the background."""
        return len(self.classes) - (self.inference.activation == "sigmoid")


class Pretraining(BaseRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training of an encoder: to tell classes of images apart, or without labels by momentum contrast.

    method   ``classification``, or ``moco``, for which all images below ``data.train`` count, whatever their folders
    classes  names of the folders; left out: all of them, in alphabetical order
    moco     of that method
    """

    network: PlainEncoder
    data: ImageFolders
    method: Literal["classification", "moco"] = "classification"
    classes: tuple[str, ...] = ()
    sampling: ImageSampling = ImageSampling()
    moco: Moco = Moco()

    def __post_init__(self) -> None:
        check(
            self.method == "classification" or self.moco.queue >= self.sampling.batch,
            f"moco.queue of {self.moco.queue} must hold at least a batch of {self.sampling.batch}",
        )
        check(len(self.classes) != 1, "classes must name at least two folders")
        check(len(set(self.classes)) == len(self.classes), f"classes are named twice: {', '.join(self.classes)}")
        self.check_together(self.sampling, self.network.channels)


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe for `tilelab train`; see `read_recipe`, and `read_overrides` of what changes it."""
    return read_recipe(name, read_overrides(overrides or ()), Recipe, "train")


def load_pretraining(name: str, overrides: list[str] | None = None) -> Pretraining:
    """A recipe for `tilelab pretrain`; see `load_recipe`."""
    return read_recipe(name, read_overrides(overrides or ()), Pretraining, "pretrain")
