"""Residual sums of torchvision's blocks, read from their sources."""

from __future__ import annotations

from .executed import Entry, flag

BLOCKS: dict[str, Entry] = {
    'convnext.CNBlock': 1,
    'efficientnet.FusedMBConv': flag('use_res_connect'),
    'efficientnet.MBConv': flag('use_res_connect'),
    'maxvit.MBConv': 1,
    'maxvit.PartitionAttentionLayer': 2,
    'mnasnet._InvertedResidual': flag('apply_residual'),
    'mobilenetv2.InvertedResidual': flag('use_res_connect'),
    'mobilenetv2.QuantizableInvertedResidual': flag('use_res_connect'),
    'mobilenetv3.InvertedResidual': flag('use_res_connect'),
    'mobilenetv3.QuantizableInvertedResidual': flag('use_res_connect'),
    'mvit.MultiscaleBlock': 2,  # residual pooling is inside the branch
    'raft.BottleneckBlock': 1,
    'raft.ResidualBlock': 1,
    'regnet.ResBottleneckBlock': 1,
    'resnet.BasicBlock': 1,  # also of video networks
    'resnet.Bottleneck': 1,
    'resnet.QuantizableBasicBlock': 1,
    'resnet.QuantizableBottleneck': 1,
    'swin_transformer.SwinTransformerBlock': 2,
    'swin_transformer.SwinTransformerBlockV2': 2,
    'vision_transformer.EncoderBlock': 2,
}
