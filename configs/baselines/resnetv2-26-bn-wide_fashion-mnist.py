# resnetv2-26-bn_fashion-mnist.py with twice the channels: the twin of
# nf-resnet26-wide_fashion-mnist.py, with batch norm.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=512),
    head=dict(in_channels=512),
)
# A step takes 0.8 times as long with it on a CPU.
custom_hooks = [dict(type='nf_plugins.ChannelsLastHook')]
