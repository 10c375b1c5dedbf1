"""The rim: spectra of users to tensors and back, with units, masks, uncertainties, air and vacuum; whence data come.

Does not live here: files of instruments (`adapters`).
"""
