from .pws_resnet import PWSResNet

__all__ = ['PWSResNet']
