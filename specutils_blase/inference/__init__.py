"""The objective and how it is minimised: priors, prior means, noise, normal equations, iterations.

Does not live here: what is free and in which stages (`fitting`), the model (`model`).
"""

from .._lazy import attach

_WHERE = {
    "Diagonal": ".noise",
    "LinePriors": ".priors",
    "Noise": ".noise",
    "Objective": ".objective",
    "PriorMean": ".prior_mean",
    "Status": ".solution",
}

__all__ = ["Diagonal", "LinePriors", "Noise", "Objective", "PriorMean", "Status"]

__getattr__, __dir__ = attach(__name__, _WHERE)
