"""OneFormer (Jain 2023), built by the library transformers (Apache-2.0), with the task held at semantic segmentation.

Its queries give a mask and a class each; a pixel's score for a class is the sum over queries of the products of both,
and its logarithm is the logit.  Weights begin at chance: transformers would download the published ones.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.attention import enlarge
from tilelab.models.smp import import_smp
from tilelab.text import install_hint

STRIDE = 32
_LEAST = 1e-4
"""Least score of a class: half precision holds it."""
# Of each Swin encoder: features, blocks of each stage, heads of each stage, side of its windows.
_SWIN: dict[str, tuple[int, list[int], list[int], int]] = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24], 8),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48], 12),
}


class OneFormer(nn.Module):
    """The network.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        size: of the Swin encoder, ``tiny`` or the paper's ``large``.
        queries: masks that are asked for.
        layers: of the decoder.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        size: Literal["tiny", "large"] = "large",
        queries: int = 150,
        layers: int = 10,
    ):
        super().__init__()
        if size not in _SWIN:
            raise ModelError(f"unknown size {size!r} of oneformer: choose one of {', '.join(_SWIN)}")
        import_smp()  # makes a torchvision that does not fit this torch harmless
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise ModelError(f"oneformer needs the library transformers: {install_hint('transformers')}") from error
        library: Any = transformers
        features, depths, heads, window = _SWIN[size]
        encoder = library.SwinConfig(
            num_channels=channels,
            embed_dim=features,
            depths=depths,
            num_heads=heads,
            window_size=window,
            image_size=512,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            attn_implementation="eager",  # fused attention of this encoder does not export
        )
        config = library.OneFormerConfig(
            backbone_config=encoder,
            num_labels=outputs,
            num_queries=queries,
            decoder_layers=layers,
            is_training=False,
            use_auxiliary_loss=False,
            output_attentions=False,
            attn_implementation="eager",
        )
        self.network = library.OneFormerForUniversalSegmentation(config)
        # The task's text is the same for every image, and so is what its embedding begins with.
        self.register_buffer("task", torch.ones(1, config.task_seq_len), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 32."""
        height, width = x.shape[2], x.shape[3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"height and width must be multiples of {STRIDE}, not {height} and {width}")
        out = self.network(pixel_values=x, task_inputs=self.get_buffer("task").expand(x.shape[0], -1))
        classes = out.class_queries_logits.softmax(dim=2)[:, :, :-1]  # the last says that there is none
        masks = out.masks_queries_logits.sigmoid()
        scores = (classes.transpose(1, 2) @ masks.flatten(2)).reshape(x.shape[0], -1, *masks.shape[2:])
        return enlarge(scores.clamp(min=_LEAST).log(), height, width)
