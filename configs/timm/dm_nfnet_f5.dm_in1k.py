# timm's dm_nfnet_f5.dm_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'dm_nfnet_f0.dm_in1k.py'

model = dict(backbone=dict(arch=dict(base='f5')))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 416
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (570, 570)
test_pipeline[2].crop_size = 544
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
