"""The structured least squares behind each step: derivatives on windows, blocks, a banded Cholesky factor.

Does not live here: what is minimised (`inference.objective`).
"""
