_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/pws_imagenet.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
train_dataloader = dict(batch_size=64)
