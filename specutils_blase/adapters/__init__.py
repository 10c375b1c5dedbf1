"""Other packages' spectra: read their attributes and files.

muler is imported inside functions only.

- ``identify.py``: whose file it is, HPF's, IGRINS' or NIRSPEC's;
- ``loaders.py``: all orders of such a file, as muler's lists;
- ``registration.py``: specutils told of these loaders;
- ``muler.py``: what an order's object and header tell, and one order of HPF reduced;
- ``barycentric.py``: time, coordinates and barycentric velocity from a header;
- ``files.py``: one spectrum, or all, of any file;
- ``orders.py``: the table of what a file holds;
- ``blase.py``: states that blasé saved, and ``mixed_profile.py``: the profile that most of them were fitted with.

Does not live here: units, masks and uncertainties (`spectrum`), which muler's objects have as every
`specutils.Spectrum` has them.
"""
