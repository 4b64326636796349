# timm's nfnet_l0.ra2_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'dm_nfnet_f0.dm_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='nf_plugins.NFNet',
        arch=dict(
            base='f0',
            se_ratio=0.25,
            final_ratio=(3, 2),
            group_width=64,
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
    neck=dict(in_channels=2304, act_cfg=dict(_delete_=True, type='SiLU')),
    head=dict(in_channels=2304),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 224
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(
    type='ResizeEdge', scale=288, edge='short', backend='pillow', interpolation='bicubic'
)
test_pipeline[2].crop_size = 288
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
