# The published depth; the rest, without dropout and stochastic depth, as NF-ResNet-50 (ours).
_base_ = './nf-resnet50_8xb32_in1k.py'

model = dict(backbone=dict(depth=200))
