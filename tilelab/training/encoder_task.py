"""What the tasks that teach an encoder alone share: their file, where they begin, which images they may go on with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from tilelab.errors import ResumeError
from tilelab.models.encoders import WeightsReport, find_weights, load_encoder_weights
from tilelab.spec import Normalization
from tilelab.training.checkpoint import State
from tilelab.training.folders import Labelled, Library, open_some
from tilelab.training.log import ENCODER
from tilelab.training.loop import Note
from tilelab.training.pairs import measure_normalization
from tilelab.training.recipe import Pretraining, RecipeError

_STRIDE = 32


class EncoderHeader(State, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file of encoder weights, or a pre-training's last checkpoint, says beside its tensors.

    classes        that it was taught to tell apart
    normalization  of its input: a decoder's should bring intensities to the same range
    trained_on     folder, number of classes and images, digest of the images' names and sizes
    """

    recipe: Pretraining
    classes: tuple[str, ...]
    normalization: Normalization
    trained_on: dict[str, Any] = msgspec.field(default_factory=dict)


class EncoderTask:
    """The part of `tilelab.training.loop.Task` that does not depend on what is learned.

    Attributes:
        network: that learns.
        names: of the classes, in the order of the images' labels; empty without labels.
    """

    best = ENCODER
    header = EncoderHeader
    network: nn.Module
    names: Sequence[str] = ()

    def __init__(self, recipe: Pretraining, root: Path):
        self.recipe, self.root = recipe, root
        self.batch = recipe.sampling.batch
        if recipe.sampling.crop % _STRIDE:
            raise RecipeError(f"sampling.crop of {recipe.sampling.crop} px is not a multiple of {_STRIDE}")

    def _open(self, train: Sequence[Labelled], held_back: Sequence[Labelled]) -> None:
        """The images of both sets, normalised as those to train on."""
        channels = self.recipe.network.channels
        self.normalization = self.recipe.normalization or measure_normalization(open_some(train))
        self.images = Library(train, self.normalization, channels)
        self.validation = Library(held_back, self.normalization, channels)

    def begin(self, note: Note) -> EncoderHeader:
        """Load what the recipe begins with."""
        weights = self.recipe.network.weights
        if weights:
            note(f"{weights}: {self._load(find_weights(weights, self.recipe.network.encoder, self.root))}")
        return EncoderHeader(
            recipe=self.recipe,
            classes=tuple(self.names),
            normalization=self.normalization,
            trained_on=self._trained_on(),
        )

    def _load(self, weights: Path) -> WeightsReport:
        return load_encoder_weights(self.network, weights)

    def resume(self, header: EncoderHeader) -> None:
        """Refuse to go on with other images than before."""
        if header.trained_on and header.trained_on != self._trained_on():
            raise ResumeError(
                "the images to train on are not those that this training began with: put them back, give another "
                "output, or --restart"
            )

    def _trained_on(self) -> dict[str, Any]:
        """What the images are, by their names and sizes; there may be too many to read."""
        listed = hashlib.sha256()
        for image in self.images.images:
            of_class = f"{self.names[image.label]}/" if self.names else ""
            listed.update(f"{of_class}{image.path.name} {image.path.stat().st_size}\n".encode())
        return {
            "folder": self.root.resolve().name,
            **({"classes": len(self.names)} if self.names else {}),
            "images": len(self.images.images),
            "digest": f"sha256:{listed.hexdigest()}",
        }
