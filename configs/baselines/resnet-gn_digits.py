# The same network with group norm.
_base_ = './resnet-bn_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=8)))
