"""Prior means of lines that a template has in common against the real ones: amounts, strength, widths.

Does not live here: the contract and its equations (`inference.prior_mean`), how far they may go (`inference.bounds`).
"""
