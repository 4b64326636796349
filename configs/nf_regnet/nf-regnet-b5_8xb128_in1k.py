# Trained at 384, tested at 456, as published.
_base_ = 'nf-regnet-b0_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='b5'),
    neck=dict(in_channels=1536, drop_rate=0.4),
    head=dict(in_channels=1536),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1].crop_size = 456
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
