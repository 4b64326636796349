from .relu_neck import ReLUNeck

__all__ = ['ReLUNeck']
