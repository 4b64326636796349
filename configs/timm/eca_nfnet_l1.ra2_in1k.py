# timm's eca_nfnet_l1.ra2_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'eca_nfnet_l0.ra2_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            base='f1',
            attention='eca',
            group_width=64,
            bottleneck_ratio=0.25,
            channel_divisor=8,
            gamma_at='conv',
            downsample='avg',
        )
    ),
    neck=dict(in_channels=3072),
    head=dict(in_channels=3072),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 256
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 320
test_pipeline[2].crop_size = 320
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
