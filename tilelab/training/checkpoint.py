"""Checkpoints: one safetensors file with its recipe, model description and scores as JSON in the header.

Nothing in it is code, and nothing in it can run: tensors are raw bytes, the rest is text.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tilelab.errors import ModelError
from tilelab.machine.disk import replacing
from tilelab.models import build_model
from tilelab.spec import METADATA_KEY, ModelSpec
from tilelab.training.recipe import Recipe

FORMAT = 1


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far a training is.

    step    optimiser steps behind these weights
    scores  validation scores of these weights; empty before the first validation
    best    step and scores of the best weights so far
    stale   validations since then, or since the rate was lowered
    stage   how often a plateau lowered the rate
    ended   training is over: the last step is done, or patience ran out
    """

    format: int = FORMAT
    step: int = 0
    scores: dict[str, Any] = {}
    best: dict[str, Any] = {}
    stale: int = 0
    stage: int = 0
    ended: bool = False


class Header(State, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a segmentation's checkpoint says beside its tensors."""

    recipe: Recipe
    spec: ModelSpec


H = TypeVar("H", bound=State)


@dataclass
class Checkpoint(Generic[H]):
    """Header and tensors; the tensors' names begin with ``model.``, ``average.`` or ``optimizer.``."""

    header: H
    tensors: dict[str, torch.Tensor] = field(repr=False)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one part, by their own names."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(name + ".")}


def save_checkpoint(path: Path, checkpoint: Checkpoint[H]) -> None:
    """Write `path` atomically: it is the old file or the new one, never half of one.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    places: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if place in places:  # layers that share their weights: each name has its own in a file
            tensors[name] = tensor.clone()
        places.add(place)
    text = msgspec.json.encode(checkpoint.header, order="sorted").decode()
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata={METADATA_KEY: text})
        except SafetensorError as error:
            raise _of_disk(error) from error
        # safetensors makes files that only their owner reads; ours are as readable as any other file
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)


def _of_disk(error: SafetensorError) -> OSError:
    """What a disk said, through a library that makes it a text."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(str(error)) if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


def load_checkpoint(path: Path) -> Checkpoint[Header]:
    """A segmentation's checkpoint; see `read_checkpoint`."""
    return read_checkpoint(path, Header)


def read_checkpoint(path: Path, kind: type[H]) -> Checkpoint[H]:
    """Read and check a checkpoint with a header of `kind`.

    Raises:
        ModelError: no such file, not a tilelab checkpoint, or of another format.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a safetensors checkpoint: {error}") from error
    if text is None:
        raise ModelError(f"{path} holds weights but no tilelab header: it was not written by `tilelab train`")
    try:
        header = msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        newer = " (a newer tilelab wrote it? upgrade)" if "unknown field" in str(error) else ""
        raise ModelError(f"{path}: header is not valid: {error}{newer}") from error
    if header.format != FORMAT:
        raise ModelError(f"{path} has checkpoint format {header.format}, this tilelab reads {FORMAT}: upgrade tilelab")
    return Checkpoint(header, tensors)


def load_network(checkpoint: Checkpoint[Header], *, trust: bool = False) -> nn.Module:
    """The network of a checkpoint, in evaluation mode: its averaged weights where it has them.

    trust: import the module that it may name.
    """
    recipe, outputs = checkpoint.header.recipe, checkpoint.header.spec.values
    known = recipe.network
    network = build_model(known.architecture, known.channels, outputs, **{**known.options, "trust": trust})
    weights = checkpoint.part("average") or checkpoint.part("model")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"the checkpoint's weights do not fit {recipe.network.architecture}: {error}") from error
    return network.eval()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state (momenta, step counts) as flat tensors named ``INDEX.KEY``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` took; rates come from the schedule."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    document = optimizer.state_dict()
    document["state"] = state
    optimizer.load_state_dict(document)
