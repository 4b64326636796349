# Published settings (PWSConv's configs/imagenet/pws.py).
_base_ = [
    '../_base_/models/pws_resnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/pws_imagenet.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=64)
