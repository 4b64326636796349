_base_ = [
    '../_base_/models/nf_resnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nf_imagenet.py',
    '../_base_/default_runtime.py',
]
