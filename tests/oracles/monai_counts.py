"""Residual sums of monai's blocks (1.5), read from their sources."""

from __future__ import annotations

from .executed import Entry, flag

BLOCKS: dict[str, Entry] = {
    'ahnet.Bottleneck3x3x1': 1,
    'ahnet.Pseudo3DLayer': 1,  # a convolution of the other axis, added to what it reads
    'autoencoderkl.AEKLResBlock': 1,
    'convolutions.ResidualUnit': 1,
    'diffusion_model_unet.DiffusionUNetResnetBlock': 1,
    'diffusion_model_unet.DiffusionUNetTransformerBlock': 3,  # the skip around it is no block
    'dynunet_block.UnetResBlock': 1,
    'efficientnet.MBConvBlock': lambda m: int(
        m.id_skip and m.stride == 1 and m.in_channels == m.out_channels
    ),
    'highresnet.HighResBlock': 1,
    # It calls `forward` of its blocks, so that their hooks are not called.
    'hovernet.HoVerNet': lambda m: sum(len(block.layers) for block in m.res_blocks),
    'localnet_block.ResidualBlock': 1,
    'localnet_block.LocalNetResidualBlock': 1,
    'mednext_block.MedNeXtBlock': flag('do_res'),
    'mednext_block.MedNeXtDownBlock': flag('resample_do_res'),
    'mednext_block.MedNeXtUpBlock': flag('resample_do_res'),
    'navit._NaViTTransformerBlock': 2,
    'regunet_block.RegistrationResidualConvBlock': 1,
    'resnet.ResNetBlock': 1,
    'resnet.ResNetBottleneck': 1,
    'restormer.MDTATransformerBlock': 2,
    'segresnet_block.ResBlock': 1,
    'segresnet_ds.SegResBlock': 1,
    'spade_autoencoderkl.SPADEResBlock': 1,
    'spade_diffusion_model_unet.SPADEDiffResBlock': 1,
    'spatialattention.SpatialAttentionBlock': 1,
    'squeeze_and_excitation.SEBlock': 1,
    'squeeze_and_excitation.SEBottleneck': 1,
    'squeeze_and_excitation.SEResNetBottleneck': 1,
    'squeeze_and_excitation.SEResNeXtBottleneck': 1,
    'swin_unetr.SwinTransformerBlock': 2,
    'transformerblock.TransformerBlock': lambda m: 3 if m.with_cross_attention else 2,
    'vnet.DownTransition': 1,
    'vnet.InputTransition': 1,
    'vnet.UpTransition': 1,
    'vqvae.VQVAEResidualUnit': 1,
}
