# Trained at 256, tested at 352, 4 layers of RandAugment at level 10, as published
# (what a level does differs between the implementations).
_base_ = [
    '../_base_/models/nfnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nfnet_imagenet.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='f2'), neck=dict(drop_rate=0.4))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=256, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=4,
        magnitude_level=10,
        total_level=30,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=352),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
