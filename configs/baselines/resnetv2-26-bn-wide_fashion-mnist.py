# resnetv2-26-bn_fashion-mnist.py with one and a half times the channels: the twin of
# nf-resnet26-wide_fashion-mnist.py, with batch norm.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

model = dict(
    backbone=dict(base_channels=12),
    neck=dict(in_channels=384),
    head=dict(in_channels=384),
)
