"""Files that outlive the session: clones, fits and their models as ASDF.

- ``files.py``: `read` and `write`, atomic and with clear errors;
- ``converters/``: one converter for each noun, between objects and plain trees;
- ``records.py``: parts that the nouns share: arrays, tables, spectra, settings;
- ``integration.py``: the entry points through which asdf finds the converters and the schemas in ``resources/``.

A file holds numbers, text and tables only, so reading one runs no code from it, and asdf alone shows them. Importing
this package, its entry points or its converters loads no torch: asdf does all three whoever uses it and for whatever.
"""
