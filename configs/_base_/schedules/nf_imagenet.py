# Published (DeepMind's nfnets/experiment.py): batch 1024, SGD with Nesterov momentum,
# lr 0.1 * batch / 256 after 5 epochs of warmup, cosine to 0, 90 epochs, label smoothing 0.1,
# weight decay 1e-4, but none for gains (also SkipInit gains) and biases.
# Ours: we use this recipe for NF-ResNets; the file trains a ResNet-50 with batch norm. The batch
# is 8 x 32 (`--auto-scale-lr` gives the published lr for any batch).
_base_ = './param_groups.py'

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=85,
        by_epoch=True,
        begin=5,
        end=90,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
