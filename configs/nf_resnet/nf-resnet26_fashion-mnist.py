# A narrow NF-ResNet-26 on Fashion-MNIST, for a few epochs on a CPU.
# Two settings differ from those of long trainings. The SkipInit gains start at 1, because AGC lets
# a gain of 0 grow by 1e-4 of the learning rate in a step. AGC clips at 0.1, because the batch is
# small.
_base_ = [
    '../_base_/models/nf_resnet.py',
    '../_base_/datasets/fashion-mnist.py',
    '../_base_/schedules/fashion-mnist_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        depth=26,
        base_channels=8,
        in_channels=1,
        stem='cifar',
        strides=(2, 2, 2, 2),
        skipinit=1.0,
    ),
    neck=dict(in_channels=256),
    head=dict(
        num_classes=10,
        in_channels=256,
        loss=dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
optim_wrapper = dict(
    type='nf_plugins.AGCOptimWrapper',
    clip_grad=dict(type='agc', clip_factor=0.1, eps=1e-3, skip=['head.fc.weight']),
)
randomness = dict(seed=0)
