# A small ResNet-18 of mmpretrain with batch norm, on the digits of scikit-learn. At initialisation
# the branches are not zero, and He initialisation uses the fan-in. So the signal propagation plot
# shows the effect of the norms.
_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        in_channels=1,
        stem_channels=16,
        base_channels=16,
        zero_init_residual=False,
        init_cfg=[
            dict(type='Kaiming', layer=['Conv2d'], mode='fan_in'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ],
    ),
    head=dict(num_classes=10, in_channels=128, topk=(1,)),
)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
