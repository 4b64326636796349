from .fixup_resnet import FixupResNet
from .nf_arch import NFArch
from .nf_backbone import NFBackbone
from .nf_block import NFBlockOptions
from .nf_regnet import NFRegNet
from .nf_resnet import NFResNet, SkipInitResNet
from .nfnet import NFNet
from .pws_resnet import PWSResNet
from .resnet_v2 import ResNetV2

__all__ = [
    'FixupResNet',
    'NFArch',
    'NFBackbone',
    'NFBlockOptions',
    'NFNet',
    'NFRegNet',
    'NFResNet',
    'PWSResNet',
    'ResNetV2',
    'SkipInitResNet',
]
