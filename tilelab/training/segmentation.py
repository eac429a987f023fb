"""Training on images with masks, and what the result says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tilelab.errors import ResumeError
from tilelab.models.build import initialise
from tilelab.models.encoders import find_weights, load_checkpoint_weights, load_encoder_weights
from tilelab.models.measure import measure_network
from tilelab.spec import Confidence, ModelSpec, Normalization
from tilelab.text import counted
from tilelab.training.checkpoint import Checkpoint, Header, save_checkpoint
from tilelab.training.data import CropSampler
from tilelab.training.engine import TorchEngine
from tilelab.training.log import BEST
from tilelab.training.loop import Note, Report, ignore, run_task
from tilelab.training.losses import weighted_sum
from tilelab.training.pairs import check_images, measure_normalization, open_set
from tilelab.training.provenance import DIGEST, describe_training, stated
from tilelab.training.recipe import Recipe, RecipeError
from tilelab.training.validate import CONFIDENCE, validate

_SAID = 4
"""Assumptions that are said one by one."""


def train(
    recipe: Recipe,
    root: Path,
    output: Path,
    *,
    restart: bool = False,
    trust: bool = False,
    report: Report = ignore,
    note: Note = ignore,
) -> Path:
    """Train as `recipe` says, or go on with what an interrupted call left in `output`.

    Args:
        recipe: what to train.
        root: the folder that the recipe's data paths are relative to.
        output: a folder for checkpoints and log; made if absent.
        trust: import the module that the recipe may name as its network.
        restart: begin anew, even where `output` holds an unfinished training.
        report: called after every step, by the process that writes.
        note: called with one line for each thing the user should know.

    Returns:
        The checkpoint with the best validation score.

    Raises:
        InputError: the data cannot be read or do not fit together.
        ModelError: the network cannot be built, or its pre-trained weights do not fit, or the loss is not finite.
        RecipeError: the crop or the tile does not suit the network.
        EngineError: a GPU was asked for and there is none.
        ResumeError: `output` holds a training of another recipe.
        OutputError: `output` cannot be written.
    """
    return run_task(
        partial(Segmentation, recipe, root, trust), recipe, output, restart=restart, report=report, note=note
    )


class Segmentation:
    """The task of `train`; see `tilelab.training.loop.Task`."""

    best = BEST
    header = Header

    def __init__(self, recipe: Recipe, root: Path, trust: bool = False):
        self._given, self.root = recipe, root
        self.channels, self.batch = recipe.network.channels, recipe.sampling.batch
        self.names = [info.name for info in recipe.classes]
        self.columns = ("mean_iou", "image_mean_iou", "pixel_accuracy", *(f"iou {name}" for name in self.names))
        around = recipe.network.neighbours
        pairs, self._seen = open_set(recipe.train, root, self.names, around)
        self.validation, self._seen_validation = open_set(recipe.validation, root, self.names, around, "validation")
        self.recipe = msgspec.structs.replace(recipe, provenance=stated(recipe, self._seen.digest))
        self.assumptions = tuple(dict.fromkeys(a for p in (*pairs, *self.validation) for a in p.image.assumptions))
        self.normalization = recipe.normalization or measure_normalization(pair.image for pair in pairs)
        check_images([pair.image for pair in (*pairs, *self.validation)], self.normalization, self.channels)
        self.sampler = CropSampler(
            pairs,
            self.channels,
            len(recipe.classes),
            recipe.sampling,
            recipe.augmentation,
            self.normalization,
            recipe.seed,
        )
        options = {**recipe.network.options, "trust": trust}
        self.network = initialise(recipe.seed, recipe.network.architecture, self.channels, recipe.outputs, **options)
        self.draw = self.sampler.crop
        sets = f"{counted(len(pairs), 'image')} to train on, {len(self.validation)} to validate on"
        self.about = f"{len(self.names)} classes ({', '.join(self.names)}), {sets}"

    def begin(self, note: Note) -> Header:
        """Say what was guessed; load the weights to begin with where the recipe names some; describe the model."""
        for guess in self.assumptions[:_SAID]:
            note(str(guess))
        if len(self.assumptions) > _SAID:
            note(f"assumed: the like of other images too, {len(self.assumptions)} in all")
        weights = self.recipe.network.weights
        if weights:
            file = find_weights(weights, self.recipe.network.encoder, self.root)
            note(f"{weights}: {load_encoder_weights(self.network, file)}")
        start = self.recipe.network.checkpoint
        if start:
            note(f"{start}: {load_checkpoint_weights(self.network, self.root / start)}")
        data = (
            self._seen.record(self.recipe.train, self.root),
            self._seen_validation.record(self.recipe.validation, self.root),
        )
        history = describe_training(self.recipe, self.root, *data)
        header = Header(recipe=self.recipe, spec=describe(self.recipe, self.network, self.normalization, history))
        self._seen.require(2)
        self._seen_validation.require(1)
        for line in self._tell_data():
            note(line)
        return header

    def resume(self, header: Header) -> None:
        """Refuse to go on with other data than before."""
        for key, what, seen in (
            ("trained_on", "training", self._seen),
            ("validated_on", "validation", self._seen_validation),  # by whose scores the best weights are chosen
        ):
            before = header.spec.training.get(key, {}).get(DIGEST)
            if before is not None and before != seen.digest:
                raise ResumeError(
                    f"the {what} images or masks are not those that this training began with: put them back, give "
                    "another output, or --restart"
                )

    def _tell_data(self) -> Iterator[str]:
        """What the user should know of the data before training starts."""
        for seen in (self._seen, self._seen_validation):
            yield seen.summary()
            yield from seen.notes
        if self._seen.absent:
            yield f"train: no pixel of {', '.join(self._seen.absent)}: not to be learned from these masks"
        if self._seen_validation.absent:
            absent = ", ".join(self._seen_validation.absent)
            yield f"validation: no pixel of {absent}: where none is predicted either, the mean IoU is over the others"
        if self._given.provenance and not self.recipe.provenance:
            yield f"the provenance in recipe {self.recipe.name} is of other data and left out: state that of yours"

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The recipe's."""
        return weighted_sum(self.recipe.loss, logits, target, self.recipe.inference.activation)

    def validate(self, network: nn.Module, header: Header, device: str) -> dict[str, Any]:
        """By the sweep that infers."""
        engine = TorchEngine(network, header.spec, precision=self.recipe.run.precision, device=device)
        return validate(engine, self.validation)

    def row(self, scores: dict[str, Any]) -> dict[str, float | None]:
        """As `columns`."""
        return {name: scores[name] for name in self.columns[:3]} | {
            f"iou {name}": value for name, value in scores["iou"].items()
        }

    def describe(self, scores: dict[str, Any]) -> str:
        """Mean IoU, and that of each class."""
        classes = "  ".join(f"{name} {'-' if iou is None else f'{iou:.4f}'}" for name, iou in scores["iou"].items())
        return f"mean IoU {scores['mean_iou']:.4f}  ({classes})"

    def keep(self, path: Path, header: Header, network: nn.Module) -> None:
        """A checkpoint with the weights alone; what calibrates them is in their description."""
        scores = dict(header.scores)
        known = scores.pop(CONFIDENCE, None)
        if known is not None:
            spec = msgspec.structs.replace(header.spec, confidence=msgspec.convert(known, Confidence))
            header = msgspec.structs.replace(header, spec=spec, scores=scores)
        tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
        save_checkpoint(path, Checkpoint(header, tensors))


def describe(
    recipe: Recipe, network: nn.Module, normalization: Normalization, history: Mapping[str, Any] | None = None
) -> ModelSpec:
    """The model description that inference will read; stride and receptive field are measured.

    Args:
        recipe: what is trained.
        network: as the recipe says.
        normalization: of its input.
        history: what is known of its making; left out, what the recipe states.

    Raises:
        RecipeError: the crop or the tile is not a multiple of the network's stride.
    """
    facts = measure_network(network, recipe.network.channels, tile=recipe.inference.tile)
    use = recipe.inference
    for key, pixels in (("sampling.crop", recipe.sampling.crop), ("inference.tile", use.tile)):
        if pixels % facts.stride:
            raise RecipeError(
                f"{key} of {pixels} px is not a multiple of {facts.stride}, the stride of {recipe.network.architecture}"
            )
    try:
        return ModelSpec(
            name=recipe.name,
            architecture=recipe.network.architecture,
            axes="yx",
            channels=recipe.network.channels,
            neighbours=recipe.network.neighbours,
            classes=recipe.classes,
            activation=use.activation,
            normalization=normalization,
            tile=(use.tile, use.tile),
            overlap=(use.overlap, use.overlap),
            window=use.window,
            stride=facts.stride,
            receptive_field=facts.receptive_field,
            pixel_size_nm=None if recipe.pixel_size_nm is None else (recipe.pixel_size_nm, recipe.pixel_size_nm),
            training={
                **(recipe.provenance if history is None else history),
                "parameters": facts.parameters,
                "macs_per_pixel": round(facts.macs_per_pixel),
            },
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: {error}") from error
