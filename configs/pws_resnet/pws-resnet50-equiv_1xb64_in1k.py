# Published settings (PWSConv's configs/imagenet/pws_equiv.py).
_base_ = './pws-resnet50_1xb64_in1k.py'

model = dict(backbone=dict(conv_cfg=dict(gamma=0.1, equiv=True)))
