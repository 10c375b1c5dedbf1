"""Other packages' spectra: read their attributes and files.

One module a package, which imports that package inside its functions only:

- ``muler.py``: files of the Habitable-zone Planet Finder, and the attributes of muler's objects.

Does not live here: units, masks and uncertainties (`spectrum`), which muler's objects have as every
`specutils.Spectrum` has them.
"""
