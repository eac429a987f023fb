"""Pre-training: an encoder learns to tell classes of micrographs apart, as MicroNet's did.

What is kept is the encoder alone, under its own names, for ``[network] weights`` of any recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tilelab.errors import InputError
from tilelab.models.classifier import Classifier
from tilelab.text import counted
from tilelab.training.augment import draw_scale
from tilelab.training.checkpoint import Checkpoint, save_checkpoint
from tilelab.training.crops import CropSource, Example, Square, fit_start
from tilelab.training.encoder_task import EncoderHeader, EncoderTask
from tilelab.training.folders import split_images
from tilelab.training.recipe import Pretraining
from tilelab.training.sections import Augmentation

_PLAIN = Augmentation(flips=False)


class Classification(EncoderTask):
    """The task of `pretrain`; see `tilelab.training.loop.Task`."""

    network: Classifier

    def __init__(self, recipe: Pretraining, root: Path):
        super().__init__(recipe, root)
        self.channels = recipe.network.channels
        self.names, train, held_back = split_images(recipe.data, root, recipe.classes, recipe.seed)
        self.columns = ("accuracy", "balanced_accuracy", "validation_loss", *(f"recall {n}" for n in self.names))
        self._open(train, held_back)
        labels = np.array([image.label for image in train])
        self._of_class = [np.flatnonzero(labels == k) for k in range(len(self.names))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = Classifier(
                self.channels, len(self.names), encoder=recipe.network.encoder, dropout=recipe.network.dropout
            )

    @property
    def about(self) -> str:
        """Classes and images, in words."""
        sets = f"{counted(len(self.images.images), 'image')} to train on, {len(self.validation.images)} to validate on"
        return f"{len(self.names)} classes, {sets}"

    def draw(self, step: int, index: int) -> Example:
        """A crop of an image: float32 ``(C, crop, crop)`` and the class, int64 ``()``."""
        sampling = self.recipe.sampling
        rng = np.random.default_rng((self.recipe.seed, step, index))
        scale = draw_scale(self.recipe.augmentation, rng)
        balanced, which = rng.random(2)
        if balanced < sampling.balance:
            chosen = int(rng.choice(self._of_class[int(rng.integers(len(self.names)))]))
        else:
            chosen = int(rng.integers(len(self.images.images)))
        with self.images.open(chosen, which) as source:
            extent = self._extent(source, scale)
            wanted = [int(rng.integers(max(1, size - extent + 1))) for size in source.shape]
            square = Square(fit_start(wanted, extent, source.shape), extent)
            image, _ = source.cut(square, sampling.crop, self.recipe.augmentation, rng)
        return image, torch.tensor(self.images.images[chosen].label)

    def _extent(self, source: CropSource, scale: float = 1.0) -> int:
        """Side in pixels of the image of what becomes one crop."""
        side, shorter = self.recipe.sampling.side, min(source.shape)
        return max(2, round(self.recipe.sampling.crop / scale * (shorter / side if side else 1)))

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(logits.float(), target)

    def views(self, source: CropSource) -> torch.Tensor:
        """The middle and the corners of an image, ``(1 to 5, C, crop, crop)``; fewer where the image is one crop."""
        extent, size = self._extent(source), self.recipe.sampling.crop
        ends = [max(0, n - extent) for n in source.shape]
        starts = [[n // 2 for n in ends], [0, 0], [0, ends[1]], [ends[0], 0], ends]
        squares = dict.fromkeys(Square(fit_start(start, extent, source.shape), extent) for start in starts)
        rng = np.random.default_rng(0)  # nothing is drawn from it
        return torch.stack([source.cut(square, size, _PLAIN, rng)[0] for square in squares])

    def validate(self, network: nn.Module, header: EncoderHeader, device: str) -> dict[str, Any]:  # noqa: ARG002
        """Each image is judged by the mean probability of its `views`.

        Returns:
            ``accuracy``, ``balanced_accuracy`` (mean recall), ``validation_loss``, ``recall`` by class, ``images``.
        """
        classes = len(self.names)
        hits, counts, loss = np.zeros(classes), np.zeros(classes), 0.0
        bf16 = self.recipe.run.precision == "bf16"
        for index, image in enumerate(self.validation.images):
            with self.validation.open(index) as source:
                views = self.views(source).expand(-1, self.channels, -1, -1)
            x = views.to(device, memory_format=torch.channels_last)
            with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                logits = network(x)
            probability = logits.float().softmax(dim=1).mean(dim=0).cpu()
            counts[image.label] += 1
            hits[image.label] += int(probability.argmax()) == image.label
            loss -= float(probability[image.label].clamp(min=1e-12).log())
        recall = hits / counts
        if not np.isfinite(loss):
            raise InputError(
                "the network's validation scores are not finite: lower optimizer.rate, or set "
                "optimizer.clip or schedule.warmup"
            )
        return {
            "accuracy": round(float(hits.sum() / counts.sum()), 6),
            "balanced_accuracy": round(float(recall.mean()), 6),
            "validation_loss": round(loss / len(self.validation.images), 6),
            "recall": {name: round(float(value), 6) for name, value in zip(self.names, recall, strict=True)},
            "images": len(self.validation.images),
        }

    def row(self, scores: dict[str, Any]) -> dict[str, float | None]:
        """As `columns`."""
        return {name: scores[name] for name in self.columns[:3]} | {
            f"recall {name}": value for name, value in scores["recall"].items()
        }

    def describe(self, scores: dict[str, Any]) -> str:
        """Accuracy, plain and balanced, and the class that is told worst."""
        worst = min(scores["recall"], key=scores["recall"].get)
        return (
            f"accuracy {scores['accuracy']:.4f}  balanced {scores['balanced_accuracy']:.4f}  "
            f"(worst: {worst} {scores['recall'][worst]:.4f})"
        )

    def keep(self, path: Path, header: EncoderHeader, network: nn.Module) -> None:
        """The encoder's tensors under its own names."""
        encoder = network.get_submodule("encoder")
        save_checkpoint(path, Checkpoint(header, dict(encoder.state_dict())))
