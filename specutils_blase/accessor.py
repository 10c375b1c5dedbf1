"""
The methods that specutils objects gain: ``blase_clone`` and ``blase_fit``.

They are thin: each passes the spectrum on to `specutils_blase.clone` or `specutils_blase.fit` and returns the result.
Plain functions on the class, nothing cached on the object, so that copying, slicing or changing the unit of a spectrum
cannot leave an old result behind. The pipelines are imported inside the methods, because importing this module must not
import torch. Options, units and results are the pipelines' business, not this module's.
"""

import inspect

from specutils import Spectrum, SpectrumList

__all__ = ["register"]


def blase_clone(self, **options):
    """
    Turn this precomputed spectrum into tunable Voigt lines.

    The same as ``specutils_blase.clone(spectrum, **options)``.

    Parameters
    ----------
    **options
        The keyword arguments of `specutils_blase.clone`; see ``help(specutils_blase.clone)``.

    Returns
    -------
    specutils_blase.CloneResult
        The lines, the residual of the spectrum, and a ledger with one row a line. Nothing is kept on the spectrum
        itself.

    See Also
    --------
    specutils_blase.clone : the function that does the work, where every option is described.
    """
    from .cloning.clone import clone

    return clone(self, **options)


def blase_fit(self, star=None, **options):
    """
    Fit every line of this observed spectrum, starting from clones of precomputed ones.

    The same as ``specutils_blase.fit(data, star, **options)``. The data are one order (`~specutils.Spectrum`) or
    several orders (`~specutils.SpectrumList`).

    Parameters
    ----------
    star : CloneResult, LineEmulator, astropy.table.QTable, specutils.Spectrum or None
        The star before the fit: its clone, its lines, its ledger, or a template spectrum, which is cloned first.
    **options
        The keyword arguments of `specutils_blase.fit`, such as ``telluric``; see ``help(specutils_blase.fit)``.

    Returns
    -------
    specutils_blase.FitResult
        Parameters and lines with error bars, the model, the telluric-corrected data and the star's template. Nothing
        is kept on the data themselves.

    See Also
    --------
    specutils_blase.fit : the function that does the work, where every option is described.
    """
    from .fitting.pipeline import fit

    return fit(self, star, **options)


_METHODS = (
    (Spectrum, blase_clone),
    (Spectrum, blase_fit),
    (SpectrumList, blase_fit),
)


def register():
    """
    Attach the methods to `~specutils.Spectrum` and `~specutils.SpectrumList`.

    Subclasses, muler's among them, inherit the methods. Registering again replaces our own methods, so reloading the
    package is harmless.

    Raises
    ------
    RuntimeError
        If a class already has an attribute of that name that is not ours. No method is attached then.
    """
    for cls, method in _METHODS:
        # getattr_static sees the attribute itself, where getattr would run a property or somebody's descriptor.
        present = inspect.getattr_static(cls, method.__name__, None)
        if present is not None and getattr(present, "__module__", None) != __name__:
            raise RuntimeError(
                f"{cls.__name__}.{method.__name__} already exists and is not specutils_blase's: it is {present!r}. "
                f"specutils_blase does not overwrite it; import specutils_blase before, or without, the package that "
                f"defines it, and call specutils_blase.{method.__name__.removeprefix('blase_')}(spectrum, ...) instead "
                f"of the method"
            )
    for cls, method in _METHODS:
        setattr(cls, method.__name__, method)
