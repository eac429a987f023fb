"""The arithmetic of a forward pass: bf16 where it is as fast backwards as it is forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def arithmetic(device: str, bf16: bool, *, whole: bool = False) -> Iterator[None]:
    """Compute what is called within in bf16, or as it is.

    Args:
        device: of the tensors.
        bf16: by autocast; on a CPU without the depthwise convolutions.
        whole: with them, for what is compiled.
    """
    kind = torch.device(device).type
    with torch.autocast(kind, torch.bfloat16, enabled=bf16):
        if not bf16 or kind != "cpu" or whole:
            yield
        else:
            with _DepthwiseInFull():
                yield


class _DepthwiseInFull(TorchFunctionMode):
    """Depthwise convolutions in fp32: backwards oneDNN takes four to seven times as long for them in bf16."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call, or call in fp32 and round."""
        if func is torch.conv2d and len(args) > 1 and args[1].shape[1] == 1 < args[0].shape[1]:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))
