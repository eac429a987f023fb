"""One naming scheme for every network: ``architecture``, ``architecture:encoder`` or ``package.module:Class``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.casenet import CaseNet
from tilelab.models.emnet import EmNet
from tilelab.models.encoders import check_encoder, drop_unused_stages, nearest, reason
from tilelab.models.mitonet import MitoNet
from tilelab.models.oneformer import OneFormer
from tilelab.models.pidnet import PidNet
from tilelab.models.pmcanet import PmcaNet
from tilelab.models.segmenter import Segmenter, SegVit
from tilelab.models.smp import import_smp
from tilelab.models.unet import UNet

# Decoders of segmentation_models_pytorch by our names; each takes any encoder of it, or of timm as ``tu-NAME``.
_DECODERS = {
    "unet": "Unet",
    "unet++": "UnetPlusPlus",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "pan": "PAN",
    "deeplabv3+": "DeepLabV3Plus",
}
# Our own, by name alone; those of the second table also take an encoder after the colon.
_ENCODED: dict[str, Callable[..., nn.Module]] = {"pmcanet": PmcaNet, "casenet": CaseNet, "mitonet": MitoNet}
_OWN: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    **_ENCODED,
    "pidnet": PidNet,
    "emnet": EmNet,
    "segmenter": Segmenter,
    "segvit": SegVit,
    "oneformer": OneFormer,
}


def architectures() -> tuple[str, ...]:
    """The known forms of names, for messages and help."""
    return (*_OWN, *(f"{name}:ENCODER" for name in (*_ENCODED, *_DECODERS)), "package.module:Class")


def build_model(name: str, channels: int, classes: int, *, trust: bool = False, **options: Any) -> nn.Module:
    """A freshly initialised network, on the CPU, in training mode.

    Args:
        name: ``unet`` (the published one), ``pmcanet:resnet50``, ``casenet:resnet152``, ``unet:resnet18`` and the like
            (a decoder over an encoder of segmentation_models_pytorch or timm), or ``package.module:Class`` for a
            network of the user's own, which is called as ``Class(channels, classes, **options)``.
        channels: input channels.
        classes: output channels, one logit each.
        trust: import the module that the name may name.
        **options: the architecture's own, e.g. ``widths`` of ``unet``.

    Returns:
        A module from ``(B, channels, H, W)`` float32 to logits ``(B, classes, H, W)``.

    Raises:
        ModelError: an unknown architecture, encoder or option; the known ones are listed.
    """
    base, _, encoder = name.partition(":")
    if not encoder and base in _OWN:
        return _call(name, _OWN[base], (channels, classes), options)
    if encoder and base in _ENCODED:
        if "encoder" in options:
            raise ModelError(f"{name} has its encoder in its name: leave the option out")
        return _call(name, _ENCODED[base], (channels, classes), {**options, "encoder": encoder})
    if encoder and base in _DECODERS:
        return _build_decoder(name, _DECODERS[base], encoder, channels, classes, options)
    if encoder and base not in _OWN and not trust:
        if not _may_exist(base):
            raise ModelError(_unknown(name))
        raise ModelError(f"{name} would import and run code of {base}: give --trust if you know it, see SECURITY.md")
    if encoder and base not in _OWN:
        return _call(name, _import_class(base, encoder), (channels, classes), options)
    if base in (*_ENCODED, *_DECODERS):
        raise ModelError(f"{name} needs an encoder, e.g. {base}:resnet18: choose one of {', '.join(architectures())}")
    raise ModelError(_unknown(name))


def _may_exist(module: str) -> bool:
    """Whether a module can be there; that one in a package is, cannot be told without importing the package."""
    try:
        return "." in module or find_spec(module) is not None
    except ValueError:  # it has been made by a program
        return True


def _unknown(name: str) -> str:
    base, colon, encoder = name.partition(":")
    near = [f"{other}{colon}{encoder}" for other in nearest(base, [*_OWN, *_DECODERS])]
    meant = f"the nearest are {', '.join(near)}; " if near else ""
    return f"unknown architecture {name!r}: {meant}choose one of {', '.join(architectures())}"


def _call(name: str, factory: Callable[..., nn.Module], args: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    accepted = inspect.signature(factory).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in accepted):
        known = [p.name for p in accepted][len(args) :]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ModelError(f"{name} has no option {unknown[0]!r}: choose among {', '.join(known) or 'none'}")
    try:
        return factory(*args, **options)
    except ModelError:
        raise
    except Exception as error:  # options of the wrong kind; a network of the user's own may raise anything
        raise ModelError(f"{name} cannot be built: {type(error).__name__}: {reason(error)}") from error


def _import_class(module: str, attribute: str) -> Callable[..., nn.Module]:
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a module of the user's own may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module and "." not in module:
            raise ModelError(_unknown(f"{module}:{attribute}")) from error
        raise ModelError(
            f"{module}:{attribute} cannot be imported ({error}); known architectures are {', '.join(architectures())}"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ModelError(f"{module}:{attribute} is not a torch.nn.Module class")
    return found


def _build_decoder(
    name: str, decoder: str, encoder: str, channels: int, classes: int, options: dict[str, Any]
) -> nn.Module:
    smp = import_smp()
    check_encoder(encoder)
    try:
        network = getattr(smp, decoder)(
            encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=classes, **options
        )
    except Exception as error:  # every family has its own
        raise ModelError(f"{name} cannot be built: {reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} cannot be built: segmentation_models_pytorch returned {type(network).__name__}")
    drop_unused_stages(getattr(network, "encoder", None))
    return network


def count_parameters(model: nn.Module) -> int:
    """All parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def initialise(seed: int, name: str, channels: int, classes: int, *, trust: bool = False, **options: Any) -> nn.Module:
    """`build_model` with weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, channels, classes, trust=trust, **options)
