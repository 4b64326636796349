# The digits of scikit-learn, 8x8 grey images, enlarged to 16x16. Nothing is downloaded.
dataset_type = 'nf_plugins.Digits'
# Mean and standard deviation of the training images.
data_preprocessor = dict(num_classes=10, mean=[77.79], std=[95.79], to_rgb=False)

train_pipeline = [
    dict(type='Resize', scale=(16, 16), interpolation='bicubic'),
    dict(type='RandomCrop', crop_size=16, padding=1),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=(16, 16), interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
