# timm's dm_nfnet_f0.dm_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = ['../_base_/datasets/imagenet.py', '../_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='nf_plugins.NFNet',
        arch=dict(base='f0', channel_divisor=8),
        act_cfg=dict(type='GELU'),
        eps_mode='add',
        scale_by_keep=True,
    ),
    neck=dict(
        type='nf_plugins.ReLUNeck',
        in_channels=3072,
        act_cfg=dict(type='nf_plugins.GammaAct', act='GELU'),
    ),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=3072),
)

train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResizedCrop', scale=192, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='Resize', scale=(284, 284), backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
