"""Spectra of users to tensors and back, with units, masks, uncertainties, air and vacuum; provenance of data.

Does not live here: files of instruments (`adapters`), files of results (`asdf`).
"""
