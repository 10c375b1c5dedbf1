"""What residuals tell: noise beyond that of the data, pixels that are left out, correlation, scatter of orders.

Does not live here: missing lines (`missing_lines`).
"""
