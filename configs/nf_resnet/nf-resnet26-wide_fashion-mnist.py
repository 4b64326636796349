# nf-resnet26_fashion-mnist.py with twice the channels, half the batch and half the learning rate: the
# accuracy that a CPU reaches in less than 20 minutes.
# baselines/resnetv2-26-bn-wide_fashion-mnist.py is the same with batch norm.
_base_ = './nf-resnet26_fashion-mnist.py'

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=512),
    head=dict(in_channels=512),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=64)
