# Trained at 288, tested at 320, as published.
_base_ = 'nf-regnet-b0_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='b3'),
    neck=dict(in_channels=1152, drop_rate=0.3),
    head=dict(in_channels=1152),
)
optim_wrapper = dict(optimizer=dict(weight_decay=8e-5))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 288
test_pipeline = _base_.test_pipeline
test_pipeline[1].crop_size = 320
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
