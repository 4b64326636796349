# Drawn shapes of 64x64 for mmseg. Nothing is downloaded.
dataset_type = 'nf_plugins.Shapes'
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[128.0, 128.0, 128.0],
    std=[50.0, 50.0, 50.0],
    pad_val=0,
    seg_pad_val=255,
    size=(64, 64),
)

# All images have this size. `spp_analysis.py --input` resizes its images to it.
resize = dict(type='Resize', scale=(64, 64))
train_pipeline = [resize, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
test_pipeline = [resize, dict(type='PackSegInputs')]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, num_images=128, seed=0, pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, num_images=64, seed=1, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])

test_dataloader = val_dataloader
test_evaluator = val_evaluator
