# Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28, grey. mmpretrain reads
# the four unpacked files in data/fashion_mnist. `make fashion-mnist` makes them from the Debian
# package dataset-fashion-mnist. Without them, mmpretrain downloads them.
dataset_type = 'FashionMNIST'
data_root = 'data/fashion_mnist'
# Mean and standard deviation of the training images.
data_preprocessor = dict(num_classes=10, mean=[72.94], std=[90.02], to_rgb=False)

# Without random crops, which slow down a training of a few epochs.
train_pipeline = [
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

# The images are in memory. On a CPU, a worker takes more time from the training than it saves.
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    # mmpretrain's MNIST chooses its files by `test_mode`, not by `split`.
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='test',
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
