# SSD with PWS. Published (the authors' TensorFlow code): batch 16, 250 epochs, lr 1e-3, lr / 10
# after 90, 170 and 240, weight decay 5e-4 of weights. The command in their README has batch 32
# and ten times this lr.
_base_ = './param_groups.py'

optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(
    type='MultiStepLR', by_epoch=True, begin=0, end=250, milestones=[90, 170, 240], gamma=0.1
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=250, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=16)
