# timm's eca_nfnet_l2.ra3_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'eca_nfnet_l1.ra2_in1k.py'

model = dict(backbone=dict(arch=dict(base='f2')))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 320
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 384
test_pipeline[2].crop_size = 384
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
