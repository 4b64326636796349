# resnetv2-26-bn_fashion-mnist.py with twice the channels, half the batch and half the learning rate:
# the twin of nf-resnet26-wide_fashion-mnist.py, with batch norm.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=512),
    head=dict(in_channels=512),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=64)
