# Published (DeepMind's nfnets/experiment.py): batch 1024, SGD with Nesterov momentum,
# lr 0.1 * batch / 256 after 5 epochs of warmup, cosine to 0, 90 epochs, decay 1e-4 of the
# weights but not of gains and biases (the SkipInit gain is a gain), label smoothing 0.1.
# Ours: that NF-ResNets share the recipe of that file's network, a ResNet-50 with batch norm;
# batch 8 x 32 (`--auto-scale-lr` gives the published lr for any batch).
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
