# Trained at 240, tested at 272, as published.
_base_ = [
    '../_base_/models/nf_regnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nf_regnet_imagenet.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='b2'),
    neck=dict(in_channels=1064, drop_rate=0.3),
    head=dict(in_channels=1064),
)
optim_wrapper = dict(optimizer=dict(weight_decay=7e-5))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=240, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EfficientNetCenterCrop', crop_size=272, crop_padding=32),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
