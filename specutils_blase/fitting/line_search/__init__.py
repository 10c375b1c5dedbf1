"""Lines that residuals show become lines of the fit.

Does not live here: the filter that finds them (`missing_lines`).
"""
