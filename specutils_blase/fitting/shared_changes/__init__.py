"""What lines of a template have in common against the real ones, as parameters with priors.

Does not live here: how far they may go (`inference.bounds`).
"""
