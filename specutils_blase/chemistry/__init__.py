"""Species, elements, molecular equilibrium, and how strong lines are expected to be.

Does not live here: files of line lists (`line_lists`).
"""
