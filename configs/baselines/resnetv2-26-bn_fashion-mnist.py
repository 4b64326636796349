# ResNet-V2-26 with batch norm on Fashion-MNIST: the blocks and the training of
# nf-resnet26_fashion-mnist.py, without AGC.
_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/fashion-mnist.py',
    '../_base_/schedules/fashion-mnist_sgd.py',
    '../_base_/default_runtime.py',
]

norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(
        _delete_=True,
        type='nf_plugins.ResNetV2',
        depth=26,
        base_channels=8,
        in_channels=1,
        stem='cifar',
        strides=(2, 2, 2, 2),
        norm_cfg=norm_cfg,
    ),
    neck=dict(type='nf_plugins.ReLUNeck', in_channels=256, norm_cfg=norm_cfg),
    head=dict(
        num_classes=10,
        in_channels=256,
        topk=(1,),
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    ),
)
randomness = dict(seed=0)
