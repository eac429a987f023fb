"""The one place that imports segmentation_models_pytorch."""

from __future__ import annotations

import sys
from typing import Any

import torch

from tilelab.errors import ModelError
from tilelab.text import install_hint

# Detection operators that torchvision describes whether its compiled library could be loaded or not.
_SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # the declarations last as long as these


def import_smp() -> Any:
    """segmentation_models_pytorch; a torchvision that does not fit this torch is no obstacle.

    timm imports torchvision for its data sets.  Beside a CPU build of torch the registry's torchvision, compiled for
    CUDA, cannot load its library and fails half-way through its import, for the want of two operators that no network
    of ours uses.  So they are declared, and left without an implementation.

    Raises:
        ModelError: it is not installed, or does not work with this torch.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise ModelError(f"torchvision does not work with torch {torch.__version__}: {error}") from error
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        untyped: Any = torch.library
        library = untyped.Library("torchvision", "DEF")
        _declared.append(library)
        for signature in _SIGNATURES:
            library.define(signature)
    except ModuleNotFoundError:
        pass  # timm will say so if it minds
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as error:
        raise ModelError(f"{error.name} is missing: {install_hint('train')}") from error
    return smp
