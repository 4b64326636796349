_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/pws_cifar.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(type='ResNet_CIFAR', depth=34),
    head=dict(num_classes=10, in_channels=512, topk=(1,)),
)
