# The network of resnet-bn_digits.py with group norm.
_base_ = './resnet-bn_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=8)))
