# The header of the schedule says what is published and what is ours. There is no dropout and no
# drop-path.
_base_ = [
    '../_base_/models/nf_resnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/nf_imagenet.py',
    '../_base_/default_runtime.py',
]
