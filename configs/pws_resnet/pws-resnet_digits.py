# A small PWS ResNet-18 on the digits of scikit-learn, with the published CIFAR settings of PWS.
_base_ = [
    '../_base_/models/pws_resnet.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        depth=18,
        in_channels=1,
        stem_channels=16,
        base_channels=16,
        stem='cifar',
        conv_cfg=dict(gamma=1e-3, initalpha=False),
    ),
    neck=dict(in_channels=128),
    head=dict(num_classes=10, in_channels=128, topk=(1,)),
)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
