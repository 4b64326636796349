# The depth is published. The rest is ours: as for NF-ResNet-50, without dropout and drop-path.
_base_ = './nf-resnet50_8xb32_in1k.py'

model = dict(backbone=dict(depth=288))
