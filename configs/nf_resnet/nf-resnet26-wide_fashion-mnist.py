# nf-resnet26_fashion-mnist.py with one and a half times the channels.
# baselines/resnetv2-26-bn-wide_fashion-mnist.py is the same with batch norm.
_base_ = './nf-resnet26_fashion-mnist.py'

model = dict(
    backbone=dict(base_channels=12),
    neck=dict(in_channels=384),
    head=dict(in_channels=384),
)
