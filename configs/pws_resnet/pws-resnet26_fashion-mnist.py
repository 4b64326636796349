# A narrow PWS ResNet-26 on Fashion-MNIST, with the published CIFAR settings of PWS.
_base_ = [
    '../_base_/models/pws_resnet.py',
    '../_base_/datasets/fashion-mnist.py',
    '../_base_/schedules/fashion-mnist_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        depth=(2, 2, 2, 2),
        in_channels=1,
        stem_channels=8,
        base_channels=8,
        stem='cifar',
        strides=(2, 2, 2, 2),
        conv_cfg=dict(gamma=1e-3, initalpha=False),
    ),
    neck=dict(in_channels=256),
    head=dict(num_classes=10, in_channels=256, topk=(1,)),
)
randomness = dict(seed=0)
