# Trained at 320, tested at 384, as published.
_base_ = 'nf-regnet-b0_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='b4'),
    neck=dict(in_channels=1344, drop_rate=0.4),
    head=dict(in_channels=1344),
)
optim_wrapper = dict(optimizer=dict(weight_decay=9e-5))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 320
test_pipeline = _base_.test_pipeline
test_pipeline[1].crop_size = 384
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
