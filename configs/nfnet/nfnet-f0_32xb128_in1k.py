# Trained at 192, tested at 256, 4 layers of RandAugment at level 5, as published
# (the effect of a level differs between implementations). For the test, both sides are resized to
# 32 pixels more than the crop, whatever the shape of the image, as published ('resize_crop_32').
_base_ = [
    '../_base_/models/nfnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nfnet_imagenet.py',
    '../_base_/default_runtime.py',
]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=192, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=4,
        magnitude_level=5,
        total_level=30,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(288, 288), interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
