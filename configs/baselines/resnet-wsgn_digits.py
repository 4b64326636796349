# The network of resnet-bn_digits.py with weight standardization and group norm.
_base_ = './resnet-bn_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='GN', num_groups=8)))
