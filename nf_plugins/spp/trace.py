"""The search for residual blocks under the name of version 0.1.0: :mod:`nf_plugins.spp.graph`."""

from .graph import Node, Residual, Tracer, Unit, find_residuals, tracing
from .graph.classify import classify
from .graph.nodes import common_dominator, is_ancestor, path_nodes
from .graph.ops import (
    ACTIVATIONS,
    ADDITIONS,
    BATCH_NORMS,
    CONVOLUTIONS,
    HEAVY,
    MOVES,
    NORMS,
    POOLINGS,
    PRODUCTS,
    SCALINGS,
)
from .graph.residuals import common_module, is_inside, walk_back_gains

__all__ = [
    'ACTIVATIONS',
    'ADDITIONS',
    'BATCH_NORMS',
    'CONVOLUTIONS',
    'HEAVY',
    'MOVES',
    'NORMS',
    'POOLINGS',
    'PRODUCTS',
    'SCALINGS',
    'Node',
    'Residual',
    'Tracer',
    'Unit',
    'classify',
    'common_dominator',
    'common_module',
    'find_residuals',
    'is_ancestor',
    'is_inside',
    'path_nodes',
    'tracing',
    'walk_back_gains',
]
