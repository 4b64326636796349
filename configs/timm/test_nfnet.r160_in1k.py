# timm's test_nfnet.r160_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'nfnet_l0.ra2_in1k.py'

model = dict(
    backbone=dict(arch=dict(depths=(1, 1, 1, 1), widths=(32, 64, 96, 128), group_width=8)),
    neck=dict(in_channels=192),
    head=dict(in_channels=192),
)
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 160
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 168
test_pipeline[2].crop_size = 160
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
