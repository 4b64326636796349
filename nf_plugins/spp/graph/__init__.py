"""The graph of one forward pass, and the residual blocks in it."""

from .names import block_names
from .nodes import Node
from .residuals import Residual, zero_parameter
from .tracer import Tracer, find_residuals, stem_of, tracing
from .units import Unit, plain_units

__all__ = [
    'Node',
    'Residual',
    'Tracer',
    'Unit',
    'block_names',
    'find_residuals',
    'plain_units',
    'stem_of',
    'tracing',
    'zero_parameter',
]
