# Trained at 224, tested at 256, as published.
_base_ = [
    '../_base_/models/nf_regnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nf_regnet_imagenet.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='b1'),
    neck=dict(in_channels=960, drop_rate=0.2),
    head=dict(in_channels=960),
)
optim_wrapper = dict(optimizer=dict(weight_decay=6e-5))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EfficientNetCenterCrop', crop_size=256, crop_padding=32),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
