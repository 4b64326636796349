# The network of resnetv2-26-bn_fashion-mnist.py with weight standardization and group norm.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

norm_cfg = dict(type='GN', num_groups=4)
model = dict(
    backbone=dict(conv_cfg=dict(type='ConvWS'), norm_cfg=norm_cfg, padding='symmetric'),
    neck=dict(norm_cfg=norm_cfg),
)
