"""Other packages' spectra: read their attributes and files.

muler is imported inside functions only.

- ``identify.py``: recognition of files of HPF, IGRINS and NIRSPEC;
- ``loaders.py``: all orders of such a file, as muler's lists;
- ``registration.py``: registration of these loaders with specutils;
- ``muler.py``: properties of an order from its object and header, and one order of HPF reduced;
- ``barycentric.py``: time, coordinates and barycentric velocity from a header;
- ``files.py``: one spectrum, or all, of any file;
- ``orders.py``: the table of the orders of a file;
- ``blase.py``: states that blasé saved, and ``mixed_profile.py``: the profile of most of them.

Does not live here: units, masks and uncertainties (`spectra.reading`), which muler's objects have as every
`specutils.Spectrum` has them.
"""
