# The header of the schedule says what is published.
_base_ = [
    '../_base_/models/deit_dyt.py',
    '../_base_/datasets/imagenet_randaug.py',
    '../_base_/schedules/dyt_imagenet.py',
    '../_base_/default_runtime.py',
]
