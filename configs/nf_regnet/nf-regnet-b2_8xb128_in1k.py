# Trained at 240, tested at 272, as published.
_base_ = 'nf-regnet-b0_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='b2'),
    neck=dict(in_channels=1064, drop_rate=0.3),
    head=dict(in_channels=1064),
)
optim_wrapper = dict(optimizer=dict(weight_decay=7e-5))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 240
test_pipeline = _base_.test_pipeline
test_pipeline[1].crop_size = 272
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
