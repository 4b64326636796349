# Published settings (PWSConv's configs/cifar/pws.py).
_base_ = [
    '../_base_/models/pws_resnet.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/pws_cifar.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(depth=34, stem='cifar', conv_cfg=dict(gamma=1e-3, initalpha=False)),
    neck=dict(in_channels=512),
    head=dict(num_classes=10, in_channels=512, topk=(1,)),
)
