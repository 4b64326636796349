"""The networks: those that get faults, and published ones at their own initialisation."""

from __future__ import annotations

import copy
import functools

import timm
import torch
import torchvision
from timm.layers import GatedMlp, GroupNormAct, StdConv2d
from timm.models import mlp_mixer, resnetv2
from timm.models.cait import Cait
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import MlpMixer
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.xcit import Xcit
from torch import nn

from nf_plugins.models import (
    FixupResNet,
    NFNet,
    NFRegNet,
    NFResNet,
    PWSResNet,
    ResNetV2,
    SkipInitResNet,
)

from .hand_written import GPT, GroupNormNet, Llama, PlainNet, UNet


def _own(build: type, **kwargs) -> nn.Module:
    net = build(**kwargs)
    net.init_weights()
    return net


def _torchvision(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None)


SUBJECTS = {
    'torchvision resnet18': lambda: _torchvision('resnet18'),
    'torchvision mobilenet_v3_small': lambda: _torchvision('mobilenet_v3_small'),
    'torchvision shufflenet_v2_x0_5': lambda: _torchvision('shufflenet_v2_x0_5'),
    'timm resnet26': lambda: timm.create_model('resnet26', channels=(32, 64, 128, 256)),
    'timm regnetx_002': lambda: timm.create_model('regnetx_002'),
    'timm efficientnet_lite0': lambda: timm.create_model('efficientnet_lite0'),
    'timm convnext_atto': lambda: timm.create_model('convnext_atto', ls_init_value=1.0),
    'timm vit_tiny': lambda: timm.create_model('vit_tiny_patch16_224', img_size=64),
    'timm swin': lambda: timm.create_model(
        'swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=48
    ),
    'timm mixer': lambda: MlpMixer(img_size=64, patch_size=8, embed_dim=192),
    'timm nf_resnet26': lambda: timm.create_model('nf_resnet26'),
    'NFResNet': lambda: _own(NFResNet, depth=26, skipinit=1.0, base_channels=32),
    'NFRegNet': lambda: _own(NFRegNet, arch='b0', skipinit=1.0),
    'ResNetV2': lambda: _own(ResNetV2, depth=50, base_channels=32),
    'PWSResNet': lambda: _own(PWSResNet, depth=50, base_channels=32),
}
"""Name -> constructor of a network that gets faults."""

_TORCHVISION = (
    'resnet34 mobilenet_v2 mobilenet_v3_large shufflenet_v2_x0_5 '
    'shufflenet_v2_x1_0 mnasnet0_5 mnasnet1_0 densenet121 googlenet regnet_y_400mf regnet_x_400mf '
    'regnet_y_800mf efficientnet_b0 efficientnet_b1 swin_t swin_v2_t '
    'vgg11 vgg11_bn alexnet squeezenet1_1'
)
_TIMM = (
    'resnet26 resnet26d resnet18d seresnet18 ecaresnet26t resnetblur50 resnext26ts resnetv2_50 '
    'regnety_002 regnetz_005 mobilenetv3_small_050 mobilenetv2_050 efficientnet_es '
    'tf_efficientnetv2_b0 lcnet_050 ghostnet_050 hardcorenas_a mixnet_s tinynet_e rexnet_100 '
    'fbnetc_100 spnasnet_100 semnasnet_075 dla34 dla46_c hrnet_w18_small res2net50_26w_4s '
    'skresnet18 selecsls42 cspresnet50 darknet53 vovnet39a repvgg_a0 mobileone_s0 '
    'convnextv2_atto convnext_femto convmixer_768_32 poolformer_s12 poolformerv2_s12 '
    'edgenext_xx_small '
    'mobilevit_xxs mobilevitv2_050 efficientformer_l1 fastvit_t8 starnet_s1 mambaout_femto '
    'deit_tiny_patch16_224 deit3_small_patch16_224 cait_xxs24_224 '
    'xcit_nano_12_p16_224 levit_128s pit_ti_224 visformer_tiny tnt_s_patch16_224 '
    'twins_pcpvt_small pvt_v2_b0 gmlp_s16_224 resmlp_12_224 nf_regnet_b0 nf_resnet50 dm_nfnet_f0 '
    'eca_nfnet_l0 nf_seresnet26 efficientvit_b0 hgnet_tiny inception_next_tiny gcresnet50t'
)


def _timm(name: str) -> nn.Module:
    return timm.create_model(name)


HEALTHY = {
    **{f'torchvision {n}': (lambda n=n: _torchvision(n)) for n in _TORCHVISION.split()},
    **{f'timm {n}': (lambda n=n: _timm(n)) for n in _TIMM.split()},
    'NFNet': lambda: _own(NFNet, arch=dict(base='f0', width_mult=0.25, group_width=32)),
    'NFRegNet, gains at zero': lambda: _own(NFRegNet, arch='b0'),
    'ResNetV2-101': lambda: _own(ResNetV2, depth=101),
    'PWSResNet-101': lambda: _own(PWSResNet, depth=101),
}
"""Name -> constructor of a published network, at its own initialisation."""

CLASSICS = ('alexnet', 'vgg11', 'squeezenet1_1', 'squeezenet1_0')
CLASSICS += ('SkipInitResNet', 'SkipInitResNet-50')
"""Published networks without norms: what is said of their variance is true."""


# ------------------------------------------------------------------ held out
def _mlp(block: str, **kwargs) -> nn.Module:
    layer = getattr(mlp_mixer, block)
    return MlpMixer(
        img_size=64, patch_size=8, embed_dim=96, num_blocks=6, block_layer=layer, **kwargs
    )


def _mmpretrain(**config) -> nn.Module:
    from mmpretrain.registry import MODELS

    net = MODELS.build(config)
    net.init_weights()
    return net


def _bit() -> nn.Module:
    return resnetv2.ResNetV2(
        (2, 2, 3, 2),
        (64, 128, 256, 256),
        conv_layer=StdConv2d,
        norm_layer=functools.partial(GroupNormAct, num_groups=8),
    )


HELD_OUT = {
    'torchvision densenet': lambda: torchvision.models.DenseNet(16, (3, 4, 4, 3), 32),
    'timm regnety_004': lambda: _timm('regnety_004'),
    'timm coatnet': lambda: timm.create_model('coatnet_pico_rw_224', img_size=64),
    'timm maxvit': lambda: timm.create_model('maxvit_rmlp_pico_rw_256', img_size=64),
    'timm resmlp': lambda: _mlp('ResBlock', norm_layer=mlp_mixer.Affine, mlp_ratio=4),
    'timm gmlp': lambda: _mlp('SpatialGatingBlock', mlp_layer=GatedMlp, mlp_ratio=4),
    'timm xcit': lambda: Xcit(img_size=64, embed_dim=96, depth=4, num_heads=4, eta=1.0),
    'timm cait': lambda: Cait(
        img_size=64, patch_size=8, embed_dim=96, depth=6, num_heads=4, init_values=0.1
    ),
    'timm convmixer': lambda: ConvMixer(96, 6, patch_size=4),
    'timm poolformerv2': lambda: _timm('poolformerv2_s12'),
    'timm mvitv2': lambda: MultiScaleVit(
        MultiScaleVitCfg((1, 1, 3, 1), embed_dim=48), img_size=(64, 64)
    ),
    'timm resnetv2 with group norm': _bit,
    'timm nfnet with SiLU': lambda: _timm('eca_nfnet_l0'),
    'mmpretrain VAN': lambda: _mmpretrain(type='VAN', arch='tiny'),
    'mmpretrain RepVGG': lambda: _mmpretrain(type='RepVGG', arch='A0', out_indices=(3,)),
    'U-Net': UNet,
    'GPT': GPT,
    'Llama': Llama,
    'plain network': PlainNet,
    'ResNet with group norm': GroupNormNet,
    'NFNet with GELU': lambda: _own(
        NFNet, arch=dict(base='f0', width_mult=0.125, group_width=16), skipinit=1.0
    ),
    'FixupResNet': lambda: _own(FixupResNet, depth=50, base_channels=32),
    'SkipInitResNet': lambda: _own(SkipInitResNet, depth=50, base_channels=32),
    'PWSResNet-18': lambda: _own(PWSResNet, depth=18, base_channels=32),
}
"""Networks of the held-out split, which get faults: no rule was written with a look at them."""

_HELD_OUT_TIMM = (
    'resnext50_32x4d seresnext26d_32x4d resnest14d resnetv2_50d_gn ese_vovnet19b_dw '
    'mobilenetv4_conv_small repghostnet_050 repvit_m0_9 ghostnetv2_100 efficientvit_m0 '
    'tiny_vit_5m_224 swiftformer_xs fasternet_t0 hgnetv2_b0 rdnet_tiny coat_lite_tiny '
    'crossvit_tiny_240 convit_tiny nest_tiny focalnet_tiny_srf hiera_tiny_224 gcvit_xxtiny '
    'mvitv2_tiny densenetblur121d regnetz_b16 convnext_nano cs3darknet_focus_s gernet_s '
    'nf_ecaresnet26 vit_tiny_r_s16_p8_224 gmixer_12_224'
)
_HELD_OUT_TORCHVISION = 'vgg13_bn squeezenet1_0'
HELD_OUT_HEALTHY = {
    **{f'torchvision {n}': (lambda n=n: _torchvision(n)) for n in _HELD_OUT_TORCHVISION.split()},
    **{f'timm {n}': (lambda n=n: _timm(n)) for n in _HELD_OUT_TIMM.split()},
    'FixupResNet-101': lambda: _own(FixupResNet, depth=101),
    'SkipInitResNet-50': lambda: _own(SkipInitResNet, depth=50),
}
"""Published networks of the held-out split, at their own initialisation."""

LANGUAGE = ('GPT', 'Llama')
"""Networks that read tokens."""
EVERY = {**HELD_OUT_HEALTHY, **HELD_OUT, **HEALTHY, **SUBJECTS}


@functools.lru_cache(2)
def _built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return EVERY[name]()


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a network with seeded weights."""
    return copy.deepcopy(_built(name, seed))
