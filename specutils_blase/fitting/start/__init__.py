"""Where a fit starts: cross-correlation, templates brought to the data, hypotheses compared.

Does not live here: the fit (`fitting.stages`).
"""
