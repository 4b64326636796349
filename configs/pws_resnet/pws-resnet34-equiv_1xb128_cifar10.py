# Published settings (PWSConv's configs/cifar/pws_equiv.py).
_base_ = './pws-resnet34_1xb128_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(gamma=0.1, equiv=True, initalpha=True)))
