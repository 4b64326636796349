_base_ = './nf-resnet50_8xb32_in1k.py'

model = dict(backbone=dict(depth=288))
