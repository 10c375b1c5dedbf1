"""The methods on specutils objects: they exist, they delegate, they keep no state, they overwrite nobody."""

import copy
import importlib
import sys
import types
import warnings

import astropy.units as u
import numpy as np
import pytest
from specutils import Spectrum, SpectrumList

import specutils_blase.accessor as accessor


def order(n=32):
    wavelength = np.linspace(10500.0, 10510.0, n) * u.AA
    return Spectrum(spectral_axis=wavelength, flux=np.linspace(0.5, 1.0, n) * u.dimensionless_unscaled)


def hpf_order(n=32):
    # Importing muler rewrites the warning filters of the whole process; the context puts them back.
    with warnings.catch_warnings():
        from muler.hpf import HPFSpectrum
    return HPFSpectrum(spectral_axis=np.linspace(10500.0, 10510.0, n) * u.AA, flux=np.linspace(0.5, 1.0, n) * u.ct)


def hpf_list():
    with warnings.catch_warnings():
        from muler.hpf import HPFSpectrumList
    return HPFSpectrumList([hpf_order(), hpf_order()])


SPECTRA = {"Spectrum": order, "HPFSpectrum": hpf_order}
LISTS = {"SpectrumList": lambda: SpectrumList([order(), order()]), "HPFSpectrumList": hpf_list}


@pytest.fixture
def pipelines(monkeypatch):
    """Fakes of the two pipelines that return the arguments of their calls."""

    def replace(module, function):
        fake = types.ModuleType(f"specutils_blase.{module}")
        setattr(fake, function, lambda *args, **options: (function, args, options))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)

    replace("cloning.clone", "clone")
    replace("fitting.pipeline", "fit")


@pytest.mark.parametrize("make", SPECTRA.values(), ids=SPECTRA)
def test_clone_delegates(make, pipelines):
    spectrum = make()
    name, args, options = spectrum.blase_clone(prominence=0.01)
    assert name == "clone"
    assert len(args) == 1 and args[0] is spectrum
    assert options == {"prominence": 0.01}


@pytest.mark.parametrize("make", (SPECTRA | LISTS).values(), ids=SPECTRA | LISTS)
def test_fit_delegates(make, pipelines):
    data, star, sky = make(), object(), object()
    name, args, options = data.blase_fit(star, telluric=sky)
    assert name == "fit"
    assert len(args) == 2 and args[0] is data and args[1] is star
    assert options == {"telluric": sky}
    assert data.blase_fit(star=star)[1][1] is star
    assert data.blase_fit()[1][1] is None


def test_lists_have_no_clone():
    assert not hasattr(SpectrumList, "blase_clone")


@pytest.mark.parametrize(
    "derive",
    [copy.copy, copy.deepcopy, lambda s: s[4:20], lambda s: s * 2, lambda s: s.with_flux_unit(s.flux.unit)],
    ids=["copy", "deepcopy", "slice", "product", "with_flux_unit"],
)
@pytest.mark.parametrize("make", SPECTRA.values(), ids=SPECTRA)
def test_derived_spectrum_passes_itself(make, derive, pipelines):
    """A copy, slice or product hands over itself, not the spectrum it came from, and calling leaves nothing behind."""
    spectrum = make()
    before = set(vars(spectrum))
    spectrum.blase_fit("star")
    spectrum.blase_clone()
    assert set(vars(spectrum)) == before

    derived = derive(spectrum)
    assert derived.blase_fit("star")[1][0] is derived
    assert derived.blase_clone()[1][0] is derived
    assert "blase" not in " ".join(vars(derived))


@pytest.mark.parametrize("derive", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@pytest.mark.parametrize("make", LISTS.values(), ids=LISTS)
def test_derived_list_passes_itself(make, derive, pipelines):
    orders = make()
    orders.blase_fit("star")
    derived = derive(orders)
    assert derived.blase_fit("star")[1][0] is derived


@pytest.fixture
def restored_methods(monkeypatch):
    """Puts the methods back as they were, whatever the test does to the classes."""
    for cls, method in accessor._METHODS:
        monkeypatch.setattr(cls, method.__name__, vars(cls)[method.__name__])
    return monkeypatch


def test_registering_twice_changes_nothing(restored_methods):
    accessor.register()
    before = [vars(cls)[method.__name__] for cls, method in accessor._METHODS]
    accessor.register()
    assert [vars(cls)[method.__name__] for cls, method in accessor._METHODS] == before


def test_reloading_replaces_our_own_methods(restored_methods, pipelines):
    old = vars(Spectrum)["blase_fit"]
    importlib.reload(accessor)
    accessor.register()
    assert vars(Spectrum)["blase_fit"] is accessor.blase_fit is not old
    assert order().blase_fit("star")[0] == "fit"


@pytest.mark.parametrize(
    "foreign",
    [lambda self: "theirs", property(lambda self: "theirs"), 7],
    ids=["function", "property", "value"],
)
def test_refuses_to_overwrite(restored_methods, foreign):
    """Somebody else's attribute stays, whatever its kind, and none of ours is attached half-way."""
    restored_methods.delattr(Spectrum, "blase_clone")
    restored_methods.setattr(SpectrumList, "blase_fit", foreign)
    with pytest.raises(RuntimeError, match=r"SpectrumList\.blase_fit already exists and is not specutils_blase's"):
        accessor.register()
    assert vars(SpectrumList)["blase_fit"] is foreign
    assert "blase_clone" not in vars(Spectrum)


@pytest.mark.parametrize("method", [Spectrum.blase_clone, Spectrum.blase_fit, SpectrumList.blase_fit])
def test_help_points_to_the_function(method):
    function = method.__name__.removeprefix("blase_")
    assert f"specutils_blase.{function}" in method.__doc__
    assert "Parameters\n" in method.__doc__ and "Returns\n" in method.__doc__
