_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nf_imagenet.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='GN', num_groups=32)),
    head=dict(
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    ),
)
