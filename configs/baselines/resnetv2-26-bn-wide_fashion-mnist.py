# resnetv2-26-bn_fashion-mnist.py with twice the channels: the twin of
# nf-resnet26-wide_fashion-mnist.py, with batch norm.
# Batch norm is slower on a CPU with the channels last, so ChannelsLastHook is left out.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=512),
    head=dict(in_channels=512),
)
