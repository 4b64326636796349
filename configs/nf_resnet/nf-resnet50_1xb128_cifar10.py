# Ours, as is the schedule: the papers do not train on CIFAR. The stem is one 3x3 convolution.
_base_ = [
    '../_base_/models/nf_resnet.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/nf_cifar.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(stem='cifar'),
    head=dict(
        num_classes=10,
        loss=dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
