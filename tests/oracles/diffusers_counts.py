"""Residual sums of diffusers' blocks (0.3x), read from their sources.

A skip around one whole transformer (``Transformer2DModel``) is none of them; its layers are.
"""

from __future__ import annotations

from torch import nn

from .executed import Entry, flag


def _transformer(block: nn.Module) -> int:
    """Self-attention, MLP, and cross-attention where it has one."""
    return 2 + int(block.attn2 is not None)


BLOCKS: dict[str, Entry] = {
    'attention.BasicTransformerBlock': _transformer,
    'attention.JointTransformerBlock': lambda m: 2 if m.context_pre_only else 4,
    'attention_processor.Attention': flag('residual_connection'),
    'resnet.ResnetBlock2D': 1,
    'transformer_flux.FluxSingleTransformerBlock': 1,
    'transformer_flux.FluxTransformerBlock': 4,
    'unet_1d_blocks.ResConvBlock': 1,
    'unet_1d_blocks.SelfAttention1d': 1,
    'unet_2d_blocks.AutoencoderTinyBlock': 1,
}
