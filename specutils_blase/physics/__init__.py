"""What light does, as pure functions of tensors: profiles, saturation laws, kernels, grids, and sums of lines.

Does not live here: what is fitted (`model`), units (`spectra`).
"""
