# timm's test_nfnet.r160_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'dm_nfnet_f0.dm_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='nf_plugins.NFNet',
        arch=dict(
            base='f0',
            depths=(1, 1, 1, 1),
            widths=(32, 64, 96, 128),
            se_ratio=0.25,
            final_ratio=(3, 2),
            group_width=8,
            bottleneck_ratio=0.25,
            channel_divisor=8,
            gamma_at='conv',
            downsample='avg',
        ),
        act_cfg=dict(type='SiLU'),
        eps_mode='add',
        padding='symmetric',
        skipinit=False,
        zero_init_residual=True,
        scale_by_keep=True,
    ),
    neck=dict(in_channels=192, act_cfg=dict(_delete_=True, type='SiLU')),
    head=dict(in_channels=192),
)
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 160
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(
    type='ResizeEdge', scale=168, edge='short', backend='pillow', interpolation='bicubic'
)
test_pipeline[2].crop_size = 160
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
