# Trained at 384, tested at 512, 4 layers of RandAugment at level 15, as published
# (the effect of a level differs between implementations).
_base_ = 'nfnet-f0_32xb128_in1k.py'

model = dict(backbone=dict(arch='f4'), neck=dict(drop_rate=0.5))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384
train_pipeline[3].magnitude_level = 15
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (544, 544)
test_pipeline[2].crop_size = 512
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
