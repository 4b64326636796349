# The parameter groups of Brock et al. 2021 (DeepMind's nfnets/experiment.py), for every schedule
# of normalizer-free networks and for what is compared with them: biases, gains (the SkipInit gain
# among them) and the weights of norms are not decayed, neither is the alpha of PWS; all other
# weights are, the classifier's too. The constructor finds them by what they are, so `custom_keys`
# of your own can be added. With AGC (see nfnet_imagenet.py) everything is clipped but
# the classifier's weight, which `clip_grad.skip` names.
optim_wrapper = dict(
    constructor='nf_plugins.NFOptimWrapperConstructor',
    paramwise_cfg=dict(gain_decay_mult=0.0, bias_decay_mult=0.0, norm_decay_mult=0.0),
)
