"""The forward model: components, motion, rotation, line spread, pixels and continuum as modules; one order, or many.

Does not live here: what is free and how it is found (`inference`), tables (`ledger`).
"""

from .._lazy import attach

_WHERE = {
    ".component": ("Component",),
    ".extrinsic": ("DopplerShift", "RotationalBroadening"),
    ".global_parameter": ("GlobalParameter",),
    ".instrument": ("LineSpread", "LineSpreadFunction"),
    ".order": ("MAX_STEP", "MIN_STEP", "STEPS_PER_LINE_SPREAD", "ForwardModel", "Stages", "grid_step"),
}

__all__ = [
    "MAX_STEP",
    "MIN_STEP",
    "STEPS_PER_LINE_SPREAD",
    "Component",
    "DopplerShift",
    "ForwardModel",
    "GlobalParameter",
    "LineSpread",
    "LineSpreadFunction",
    "RotationalBroadening",
    "Stages",
    "grid_step",
]

__getattr__, __dir__ = attach(__name__, {name: module for module, names in _WHERE.items() for name in names})
