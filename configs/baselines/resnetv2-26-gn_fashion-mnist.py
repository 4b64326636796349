# The network of resnetv2-26-bn_fashion-mnist.py with group norm.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

norm_cfg = dict(type='GN', num_groups=4)
model = dict(backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg))
