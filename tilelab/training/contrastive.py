"""Pre-training without labels, as MoCo v2: two crops of one place are to be told from those of all other places.

What is kept is the encoder alone, as by `tilelab.training.classification`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tilelab.errors import InputError
from tilelab.models.encoders import WeightsReport, load_encoder_weights
from tilelab.models.moco import MoCo
from tilelab.training.augment import draw_scale
from tilelab.training.checkpoint import Checkpoint, save_checkpoint
from tilelab.training.crops import CropSource, Example, Square, fit_start
from tilelab.training.encoder_task import EncoderHeader, EncoderTask
from tilelab.training.folders import find_unlabelled
from tilelab.training.recipe import Pretraining

_ROOM = 1.5
"""Side of the place that both views come from, as a multiple of the greater one."""
_VALIDATED = 256
"""Places that are looked for among each other at most."""


class Contrastive(EncoderTask):
    """The task of `pretrain` with ``method = "moco"``; see `tilelab.training.loop.Task`."""

    columns = ("found", "validation_loss")
    network: MoCo

    def __init__(self, recipe: Pretraining, root: Path):
        super().__init__(recipe, root)
        self._own = recipe.network.channels
        self.channels = 2 * self._own  # both views of an example, one after the other
        self._open(*find_unlabelled(recipe.data, root, recipe.seed))
        moco = recipe.moco
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = MoCo(
                self._own,
                encoder=recipe.network.encoder,
                features=moco.features,
                queue=moco.queue,
                momentum=moco.momentum ** (1 / recipe.run.accumulate),  # the follower moves with every piece of a batch
                temperature=moco.temperature,
            )

    @property
    def about(self) -> str:
        """The images, in words."""
        sets = f"{len(self.images.images)} to train on, {len(self.validation.images)} to validate on"
        return f"images without labels: {sets}"

    def _load(self, weights: Path) -> WeightsReport:
        report = load_encoder_weights(self.network.learner, weights)
        self.network.follower.load_state_dict(self.network.learner.state_dict())
        return report

    def draw(self, step: int, index: int) -> Example:
        """Two views of a place: float32 ``(2 C, crop, crop)``, and the class of what is right, 0."""
        rng = np.random.default_rng((self.recipe.seed, step, index))
        chosen, which = int(rng.integers(len(self.images.images))), float(rng.random())
        with self.images.open(chosen, which) as source:
            views = self._views(source, rng)
        return torch.cat(views), torch.tensor(0)

    def _views(self, source: CropSource, rng: np.random.Generator) -> list[torch.Tensor]:
        """Two crops within one place, each changed by itself."""
        size, augmentation = self.recipe.sampling.crop, self.recipe.augmentation
        extents = [max(2, round(size / draw_scale(augmentation, rng))) for _ in range(2)]
        side = round(_ROOM * max(extents))
        corner = [int(rng.integers(max(1, length - side + 1))) for length in source.shape]
        views = []
        for extent in extents:
            start = [at + int(rng.integers(side - extent + 1)) for at in corner]
            square = Square(fit_start(start, extent, source.shape), extent)
            views.append(source.cut(square, size, augmentation, rng)[0].expand(self._own, -1, -1))
        return views

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the right one among all that are remembered."""
        return functional.cross_entropy(logits.float(), target)

    def validate(self, network: nn.Module, header: EncoderHeader, device: str) -> dict[str, Any]:  # noqa: ARG002
        """Views of places in images held back are looked for among each other.

        Returns:
            ``found`` (share whose other view is the nearest), ``validation_loss``, ``places``.
        """
        count = len(self.validation.images)
        each = max(1, _VALIDATED // count)
        bf16 = self.recipe.run.precision == "bf16"
        vectors: list[list[torch.Tensor]] = [[], []]
        for index in range(min(count, _VALIDATED)):
            with self.validation.open(index) as source:
                pairs = [self._views(source, np.random.default_rng((index, place))) for place in range(each)]
            for side in range(2):
                x = torch.stack([pair[side] for pair in pairs]).to(device, memory_format=torch.channels_last)
                with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                    vectors[side].append(network(x).float().cpu())
        one, two = (torch.cat(part) for part in vectors)
        similar = one @ two.T / self.recipe.moco.temperature
        if not bool(similar.isfinite().all()):
            raise InputError("the network's vectors are not finite: lower optimizer.rate, or set optimizer.clip")
        right = torch.arange(len(one))
        return {
            "found": round(float((similar.argmax(dim=1) == right).float().mean()), 6),
            "validation_loss": round(float(functional.cross_entropy(similar, right)), 6),
            "places": len(one),
        }

    def row(self, scores: dict[str, Any]) -> dict[str, float | None]:
        """As `columns`."""
        return {name: scores[name] for name in self.columns}

    def describe(self, scores: dict[str, Any]) -> str:
        """The share that is found, beside what chance would find."""
        return f"found {scores['found']:.4f} of {scores['places']} places (chance: {1 / scores['places']:.4f})"

    def keep(self, path: Path, header: EncoderHeader, network: nn.Module) -> None:
        """The learner's encoder under its own names."""
        encoder = network.get_submodule("learner.encoder")
        save_checkpoint(path, Checkpoint(header, dict(encoder.state_dict())))
