_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/nf_cifar.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(type='ResNet_CIFAR'),
    head=dict(num_classes=10, topk=(1,)),
)
