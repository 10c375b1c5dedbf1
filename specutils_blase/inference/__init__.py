"""What a fit minimises, and how: priors, the objective, damped Gauss-Newton steps and what ends them.

Does not live here: the stages of a fit (`fitting`), what the curvature tells (`posterior`).
"""
