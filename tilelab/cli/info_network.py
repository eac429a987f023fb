"""What `tilelab info` tells of networks in torch: checkpoints, and architectures by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from tilelab.cli.info_words import Rows
from tilelab.errors import EngineError, ModelError
from tilelab.text import format_bytes, install_hint

CHECKPOINT = ".safetensors"
_BASES = ("unet", "unet++", "linknet", "fpn", "pspnet", "pan", "deeplabv3+", "pmcanet", "casenet")
_NAMED = re.compile(r"[A-Za-z][A-Za-z0-9+_-]+:[A-Za-z][\w.-]*")  # what looks like an architecture, known or not
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:Class


def is_architecture(name: str) -> bool:
    """Whether `name` is of the form that networks are built by; no torch is needed to tell."""
    base, colon, encoder = name.partition(":")
    if base.lower() in _BASES:
        return bool(encoder) or not colon
    return _NAMED.fullmatch(name) is not None or ("." in base and _CLASS.fullmatch(name) is not None)


def examine_architecture(name: str, trust: bool = False) -> dict[str, Any]:
    """What a network with one input channel and two classes needs and sees.

    Raises:
        EngineError: torch is not installed.
        ModelError: there is no such network.
    """
    _need_torch(name)
    from tilelab.models import build_model

    network = build_model(name, 1, 2, trust=trust)
    try:
        facts = _measure(network, 1)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return {"architecture": name, "channels": 1, "outputs": 2, "network": facts}


def examine_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """What a checkpoint of `tilelab train` holds.

    Raises:
        EngineError: torch is not installed.
        ModelError: it is broken, or its network cannot be built here.
    """
    _need_torch(str(path))
    from tilelab.training.checkpoint import load_checkpoint, load_network

    loaded = load_checkpoint(path)
    header = loaded.header
    return {
        "bytes": path.stat().st_size,
        "step": header.step,
        "steps": header.recipe.run.steps,
        "scores": header.scores,
        "best": header.best,
        "averaged": bool(loaded.part("average")),
        "resumable": bool(loaded.part("optimizer")),
        "network": _measure(load_network(loaded, trust=trust), header.recipe.network.channels),
        "recipe": msgspec.to_builtins(header.recipe),
        "description": msgspec.to_builtins(header.spec),
    }


def _need_torch(name: str) -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise EngineError(f"{name} is a network in torch, which is not installed: {install_hint('train')}") from None


def _measure(network: Any, channels: int) -> dict[str, Any]:
    from tilelab.models.measure import measure_network

    facts = measure_network(network, channels)
    return {
        "parameters": facts.parameters,
        "macs_per_pixel": facts.macs_per_pixel,
        "stride": facts.stride,
        "receptive_field": facts.receptive_field,
    }


def architecture_rows(document: dict[str, Any]) -> Rows:
    """For people."""
    return [
        ("takes", f"{document['channels']} channel, {document['outputs']} outputs, freshly initialised"),
        *_network_rows(document["network"]),
    ]


def checkpoint_rows(document: dict[str, Any]) -> Rows:
    """For people; what a model file would say as well is left to the caller."""
    recipe, best = document["recipe"], document["best"]
    holds = ["averaged weights"] if document["averaged"] else ["weights"]
    holds += ["the optimiser's state"] if document["resumable"] else []
    sampling, optimizer = recipe["sampling"], recipe["optimizer"]
    crops = f"crops of {sampling['crop']} px, batch {sampling['batch']}"
    schedule = f"{optimizer['kind']} {optimizer['rate']:g}, {recipe['schedule']['kind']}"
    losses = " + ".join(f"{term['weight']:g} {term['kind']}" for term in recipe["loss"])
    return [
        ("file", f"checkpoint, {format_bytes(document['bytes'])}: {', '.join(holds)}"),
        ("trained", f"{document['step']} of {document['steps']} steps, recipe {recipe['name']}, seed {recipe['seed']}"),
        ("recipe", f"{losses}; {schedule}; {crops}"),
        ("scores", _scores(document["scores"])),
        ("best", _scores({"step": best["step"], **best.get("scores", best)}) if "step" in best else None),
        *_network_rows(document["network"]),
    ]


def _network_rows(network: dict[str, Any]) -> Rows:
    field = network["receptive_field"]
    return [
        ("parameters", f"{network['parameters'] / 1e6:.4g} million"),
        ("work", f"{network['macs_per_pixel'] / 1e3:.4g} kMAC per pixel"),
        ("stride", network["stride"]),
        ("sees", "the whole tile: output depends on all of it" if field is None else f"{field} px around each pixel"),
    ]


def _scores(scores: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in scores.items() if isinstance(value, int | float)
    )
