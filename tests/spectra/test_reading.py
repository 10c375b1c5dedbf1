"""The rim: one physical spectrum reads the same however it is written down, and bad input says what to do."""

import copy
import gc
import json
import re
import warnings

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.table import Table
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st
from specutils import Spectrum, SpectrumList

import specutils_blase as sb
from specutils_blase.adapters.files import load_spectrum
from specutils_blase.fitting.observation import read_orders
from specutils_blase.spectra.data import SpectralData, pixel_edges
from specutils_blase.spectra.frame import SpectrumFrame, spectrum_on
from specutils_blase.spectra.quantities import to_kms, to_resolving_power, to_teff
from specutils_blase.spectra.reading import read_spectrum
from specutils_blase.spectra.wavelengths import air_wavelength, vacuum_wavelength

N = 40
WAVELENGTH = np.concatenate([8660 + 0.05 * np.arange(25), 8700 + 0.06 * np.arange(N - 25)])  # with a gap
FLUX = 1 + 0.3 * np.sin(np.arange(N))
SIGMA = 0.02 + 0.001 * np.arange(N)
REST = 8664.52 * u.AA
UNITS = ["Angstrom", "nm", "um", "m", "1/cm", "Hz", "THz", "eV", "optical", "radio", "relativistic"]
UNCERTAINTIES = {
    "std": lambda sigma, factor: StdDevUncertainty(sigma / factor, unit=u.Jy * factor),
    "var": lambda sigma, factor: VarianceUncertainty((sigma / factor) ** 2, unit=(u.Jy * factor) ** 2),
    "ivar": lambda sigma, factor: InverseVariance((sigma / factor) ** -2.0, unit=(u.Jy * factor) ** -2),
    "std without unit": lambda sigma, factor: StdDevUncertainty(sigma),
    "var without unit": lambda sigma, factor: VarianceUncertainty(sigma**2),
    "ivar without unit": lambda sigma, factor: InverseVariance(sigma**-2.0),
}


def make(flux=FLUX, wavelength=WAVELENGTH, sigma=SIGMA, **options):
    if sigma is not None:
        options.setdefault("uncertainty", StdDevUncertainty(sigma))
    return Spectrum(flux=flux * u.Jy, spectral_axis=wavelength * u.AA, **options)


def write_down(axis_unit="Angstrom", reverse=False, uncertainty="std", factor=1.0, dtype="<f8", air=False):
    """The spectrum above in other words: a list of ways, one physical content."""
    axis = WAVELENGTH * u.AA
    axis, options = (air_wavelength(axis) if air else axis), {}
    if axis_unit in ("optical", "radio", "relativistic"):
        equivalency = getattr(u, f"doppler_{axis_unit}")(REST)
        axis, options = axis.to(u.km / u.s, equivalency), {"rest_value": REST, "velocity_convention": axis_unit}
    else:
        axis = axis.to(axis_unit, u.spectral())
    flux, uncertainty = FLUX.astype(dtype) * u.Jy, UNCERTAINTIES[uncertainty](SIGMA.astype(dtype), factor)
    axis = axis.value.astype(dtype) * axis.unit
    step = -1 if reverse else 1
    return Spectrum(
        flux=flux[::step], spectral_axis=axis[::step], uncertainty=uncertainty[::step], **options
    )  # negative strides stay


def assert_same(data, other, rtol=1e-12):
    for field in ("wavelength", "edges", "flux", "sigma"):
        torch.testing.assert_close(getattr(data, field), getattr(other, field), rtol=rtol, atol=0, msg=field)
    assert torch.equal(data.good, other.good)
    assert data.noise_known == other.noise_known


class TestOneSpectrumManyForms:
    def test_the_plain_form_is_what_was_written(self):
        data, frame = read_spectrum(write_down())
        assert isinstance(data, SpectralData)
        assert isinstance(frame, SpectrumFrame)
        np.testing.assert_allclose(data.wavelength, WAVELENGTH, rtol=1e-14)
        np.testing.assert_array_equal(data.edges, pixel_edges(WAVELENGTH))
        np.testing.assert_array_equal(data.flux, FLUX)
        np.testing.assert_allclose(data.sigma, SIGMA, rtol=1e-14)
        assert data.good.all()
        assert data.noise_known
        assert frame.medium == "vacuum"
        assert frame.flux_unit == u.Jy

    @given(
        axis_unit=st.sampled_from(UNITS),
        reverse=st.booleans(),
        uncertainty=st.sampled_from(list(UNCERTAINTIES)),
        factor=st.sampled_from([1.0, 1e-3, 1e6]),
        dtype=st.sampled_from(["<f8", ">f8"]),
        air=st.booleans(),
    )
    def test_same_data_and_back(self, axis_unit, reverse, uncertainty, factor, dtype, air):
        spectrum = write_down(axis_unit, reverse, uncertainty, factor, dtype, air)
        axis, flux = spectrum.spectral_axis.copy(), spectrum.flux.copy()
        data, frame = read_spectrum(spectrum, medium="air" if air else "vacuum")
        # Near its rest value a velocity is a difference of large numbers: it has fewer digits than a wavelength.
        velocity = axis_unit in ("optical", "radio", "relativistic")
        assert_same(data, read_spectrum(write_down())[0], rtol=1e-11 if velocity else 1e-12)
        assert all(getattr(data, name).is_contiguous() for name in ("wavelength", "edges", "flux", "sigma", "good"))

        back = frame.spectrum(data.flux, data.sigma, ~data.good)
        assert type(back) is Spectrum
        np.testing.assert_array_equal(back.spectral_axis.value, axis.value)
        assert back.spectral_axis.unit == axis.unit
        np.testing.assert_array_equal(back.flux.value, flux.value)
        assert back.flux.unit == u.Jy
        assert_same(read_spectrum(back, medium=frame.medium)[0], data, rtol=1e-15)
        np.testing.assert_array_equal(spectrum.flux, flux)  # the input is as it was

    def test_every_unit_once(self):
        """Without hypothesis, so that no unit is left to chance."""
        expected = read_spectrum(write_down())[0]
        for axis_unit in UNITS:
            assert_same(read_spectrum(write_down(axis_unit))[0], expected, rtol=1e-11)

    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<i4", ">i2", "u1"])
    def test_other_number_types(self, dtype):
        flux = (100 * FLUX).astype(dtype)
        data, _ = read_spectrum(make(flux))
        assert data.flux.dtype == torch.float64
        np.testing.assert_array_equal(data.flux, flux.astype(float))

    def test_millijansky_on_jansky(self):
        data, _ = read_spectrum(make(uncertainty=StdDevUncertainty(np.full(N, 100.0), unit="mJy")))
        np.testing.assert_allclose(data.sigma, 0.1, rtol=1e-14)

    def test_uncertainty_after_arithmetic_that_steals_its_parent(self):
        spectrum = make(uncertainty=StdDevUncertainty(np.full(N, 100.0), unit="mJy"))
        doubled = spectrum * 2
        np.testing.assert_allclose(read_spectrum(spectrum)[0].sigma, 0.1, rtol=1e-14)
        np.testing.assert_allclose(read_spectrum(doubled)[0].sigma, 0.2, rtol=1e-14)

    @pytest.mark.parametrize("uncertainty", [None, UnknownUncertainty(SIGMA)])
    def test_unknown_noise(self, uncertainty):
        data, _ = read_spectrum(make(sigma=None, uncertainty=uncertainty))
        assert not data.noise_known
        assert (data.sigma == 1).all()
        assert data.n_good == N

    def test_input_is_neither_changed_nor_shared(self):
        spectrum = make(meta={"list": [1, 2]})
        before = copy.deepcopy(spectrum)
        data, frame = read_spectrum(spectrum)
        for tensor in (data.flux, data.sigma, data.wavelength):
            tensor.zero_()
        frame.axis.view(np.ndarray).fill(1)
        frame.meta["list"].append(3)
        np.testing.assert_array_equal(spectrum.flux, before.flux)
        np.testing.assert_array_equal(spectrum.spectral_axis, before.spectral_axis)
        np.testing.assert_array_equal(spectrum.uncertainty.array, before.uncertainty.array)
        assert spectrum.meta == before.meta
        assert vars(spectrum).keys() == vars(before).keys()

    def test_axis_stays_as_observed(self):
        data, frame = read_spectrum(make(radial_velocity=100 * u.km / u.s))
        np.testing.assert_array_equal(data.wavelength, WAVELENGTH)
        assert frame.spectrum(data.flux).radial_velocity == 100 * u.km / u.s


class TestBadPixels:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_flux(self, value):
        flux = FLUX.copy()
        flux[7] = value
        for options in ({}, {"mask": None}, {"mask": np.zeros(N, int)}):  # specutils masks NaN only without `mask`
            self.check(make(flux, **options))

    @pytest.mark.parametrize("kind", ["std", "var", "ivar"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
    def test_uncertainty(self, kind, value):
        uncertainty = UNCERTAINTIES[kind](SIGMA, 1.0)
        uncertainty.array[7] = value
        self.check(make(uncertainty=uncertainty))

    @pytest.mark.parametrize("dtype", [bool, int, np.uint8, float])
    def test_mask_and_masked_spike(self, dtype):
        flux, mask = FLUX.copy(), np.zeros(N, dtype)
        mask[7] = 4
        self.check(make(flux, mask=mask))
        flux[7] += 1e6 * SIGMA[7]
        self.check(make(flux, mask=mask))

    def check(self, spectrum):
        """Pixel 7 is out, nothing else differs."""
        data, frame = read_spectrum(spectrum)
        clean, _ = read_spectrum(make())
        keep = torch.arange(N) != 7
        assert torch.equal(data.good, keep)
        assert torch.equal(data.wavelength, clean.wavelength)
        assert torch.equal(data.edges, clean.edges)
        assert torch.equal(data.sigma[keep], clean.sigma[keep])
        assert torch.equal(data.flux, torch.where(keep, clean.flux, 0.0))
        assert data.sigma[7] == 1
        assert len(frame.spectrum(data.flux).flux) == N


class TestEdges:
    EDGES = np.array([5000.0, 5001.0, 5003.0, 5004.0, 5008.0])

    def read(self, axis, medium="vacuum", **options):
        return read_spectrum(Spectrum(flux=np.ones(4) * u.Jy, spectral_axis=axis, **options), medium=medium)

    @pytest.mark.parametrize("step", [1, -1])
    @pytest.mark.parametrize("unit", ["Angstrom", "um"])
    def test_true_edges_are_used(self, unit, step):
        axis = (self.EDGES[::step] * u.AA).to(unit)
        data, frame = self.read(axis, bin_specification="edges")
        expected = np.stack([self.EDGES[:-1], self.EDGES[1:]], 1)
        np.testing.assert_allclose(data.edges, expected, rtol=1e-14)
        back = frame.spectrum(data.flux)
        np.testing.assert_array_equal(back.spectral_axis.bin_edges, axis)

    @pytest.mark.parametrize("unit", ["1/cm", "THz"])
    def test_true_edges_in_inverse_units(self, unit):
        data, _ = self.read((self.EDGES * u.AA).to(unit, u.spectral()), bin_specification="edges")
        np.testing.assert_allclose(data.edges, np.stack([self.EDGES[:-1], self.EDGES[1:]], 1), rtol=1e-14)
        assert ((data.edges[:, 0] < data.wavelength) & (data.wavelength < data.edges[:, 1])).all()

    def test_true_edges_in_velocity(self):
        axis = (self.EDGES * u.AA).to(u.km / u.s, u.doppler_optical(5002 * u.AA))
        data, _ = self.read(axis, bin_specification="edges", rest_value=5002 * u.AA, velocity_convention="optical")
        np.testing.assert_allclose(data.edges, np.stack([self.EDGES[:-1], self.EDGES[1:]], 1), rtol=1e-13)

    def test_true_edges_in_air(self):
        data, _ = self.read(air_wavelength(self.EDGES * u.AA), "air", bin_specification="edges")
        np.testing.assert_allclose(data.edges, np.stack([self.EDGES[:-1], self.EDGES[1:]], 1), rtol=1e-12)

    def test_single_precision_edges(self):
        data, _ = self.read(self.EDGES.astype("f4") * u.AA, bin_specification="edges")
        np.testing.assert_allclose(data.edges[:, 1], self.EDGES[1:])

    def test_edges_that_no_longer_fit_are_not_used(self):
        spectrum = Spectrum(flux=np.ones(4) * u.Jy, spectral_axis=self.EDGES * u.AA, bin_specification="edges")
        spectrum.spectral_axis.view(np.ndarray)[:] += 1.0
        data, _ = read_spectrum(spectrum)
        np.testing.assert_array_equal(data.edges, pixel_edges(spectrum.spectral_axis.value))

    def test_recomputed_edges_of_specutils_are_not_used(self):
        """They bridge gaps."""
        spectrum = make()
        assert np.diff(spectrum.bin_edges.value).max() > 10
        data, _ = read_spectrum(spectrum)
        assert data.edges.diff().max() < 0.0601


class TestMedium:
    @given(st.floats(2001.0, 60000.0))
    def test_round_trip(self, wavelength):
        air = air_wavelength(wavelength * u.AA)
        assert vacuum_wavelength(air, "air").value == pytest.approx(wavelength, rel=1e-11, abs=0)

    @given(st.floats(2001.0, 60000.0))
    def test_formula_of_ciddor_1996(self, vacuum):
        sigma2 = (1e4 / vacuum) ** 2
        n = 1 + 1e-8 * (5792105 / (238.0185 - sigma2) + 167917 / (57.362 - sigma2))
        assert air_wavelength(vacuum * u.AA).value == pytest.approx(vacuum / n, rel=1e-14, abs=0)

    @pytest.mark.parametrize(
        ("air", "vacuum"),
        [(5889.950954, 5891.583264), (5895.924237, 5897.558147), (6562.79, 6564.603), (8542.09, 8544.437)],
    )
    def test_well_known_lines(self, air, vacuum):
        """NIST: Na D, in air by Peck & Reeder (1972), 8e-5 Å from Ciddor; Hα and Ca II to their digits."""
        assert vacuum_wavelength(air * u.AA, "air").value == pytest.approx(
            vacuum, rel=0, abs=2e-4 if air < 6000 else 2e-3
        )

    def test_any_unit_and_shape(self):
        air = air_wavelength(np.array([[5000.0, 6000.0], [7000.0, 8000.0]]) * u.AA)
        for unit in ("nm", "1/cm", "Hz"):
            back = vacuum_wavelength(air.to(unit, u.spectral()), "air")
            np.testing.assert_allclose(back.to_value("nm"), [[500, 600], [700, 800]], rtol=1e-11)
        assert vacuum_wavelength(0.5 * u.um).value == pytest.approx(5000, rel=1e-15)
        assert vacuum_wavelength([] * u.um, "air").shape == (0,)

    def test_air_label_of_fits_is_not_read_as_vacuum(self):
        wcs = WCS(naxis=1)
        wcs.wcs.ctype, wcs.wcs.cunit, wcs.wcs.crval, wcs.wcs.cdelt = ["AWAV"], ["Angstrom"], [8660.0], [0.05]
        spectrum = Spectrum(flux=FLUX * u.Jy, wcs=wcs)
        for labelled in (spectrum, spectrum[3:20]):
            with pytest.raises(ValueError, match=r"CTYPE AWAV.*pass medium='air'"):
                read_spectrum(labelled)
        data, frame = read_spectrum(spectrum, medium="air")
        assert data.wavelength[0].item() - spectrum.spectral_axis[0].to_value(u.AA) == pytest.approx(2.4, abs=0.1)
        with pytest.raises(ValueError, match="says air"):
            read_spectrum(frame.spectrum(data.flux))

    def test_unknown_medium(self):
        with pytest.raises(ValueError, match="expected medium 'vacuum' or 'air', got 'water'"):
            read_spectrum(make(), medium="water")

    def test_air_in_the_far_ultraviolet(self):
        with pytest.raises(ValueError, match=r"above 2000 Å, got 1215.67 Å.*medium='vacuum'"):
            vacuum_wavelength(1215.67 * u.AA, "air")
        with pytest.raises(ValueError, match="above 2000 Å"):
            air_wavelength(1215.67 * u.AA)


class TestBadInput:
    @pytest.mark.parametrize(
        ("thing", "message"),
        [
            (FLUX * u.Jy, r"expected a specutils.Spectrum, got Quantity: wrap it, Spectrum\(flux="),
            (SpectrumList([make()]), "got SpectrumList: read its members one by one"),
            ([make()], "got list: read its members one by one"),
            (None, "got NoneType"),
        ],
    )
    def test_not_a_spectrum(self, thing, message):
        with pytest.raises(TypeError, match=message):
            read_spectrum(thing)

    @pytest.mark.parametrize(
        ("spectrum", "message"),
        [
            (lambda: make(np.full(N, np.nan), mask=None), "40 pixels and no finite flux"),
            (lambda: make(np.full(N, np.inf)), "40 pixels and no finite flux"),
            (lambda: make(mask=np.ones(N, bool)), "a mask over all finite flux: True means bad"),
            (lambda: make(sigma=np.zeros(N)), "expected positive uncertainties.*uncertainty=None"),
            (lambda: make(sigma=-SIGMA), "expected positive uncertainties"),
            (lambda: make(sigma=np.full(N, np.nan)), "expected positive uncertainties"),
            (lambda: make(uncertainty=InverseVariance(np.zeros(N))), "expected positive uncertainties"),
            (lambda: make(uncertainty=VarianceUncertainty(-SIGMA)), "expected positive uncertainties"),
            (lambda: make(FLUX[:1], WAVELENGTH[:1], SIGMA[:1]), "at least 2 pixels, got 1"),
            (lambda: make(FLUX[:0], WAVELENGTH[:0], SIGMA[:0]), "at least 2 pixels, got 0"),
            (lambda: make(FLUX[:3], np.array([5000.0, 5001, 5001]), None), r"got 1 duplicate\(s\), the first at 5001"),
            (lambda: make(FLUX[:3], np.array([5001.0, 5001, 5000]), None), r"got 1 duplicate\(s\), the first at 5001"),
            (
                lambda: make(FLUX[:3], np.array([5000.0, 5001, np.inf]), None),
                "finite, positive.*got inf Angstrom at pixel 2",
            ),
            (
                lambda: make(FLUX[:3], np.array([-1.0, 0, 1]), None),
                "finite, positive.*got -1 Angstrom at pixel 0 and 1 more",
            ),
            (lambda: Spectrum(FLUX[:2] * u.Jy, [0, 1] * u.Hz), "finite, positive.*got 0 Hz at pixel 0"),
            (
                lambda: Spectrum(np.ones((3, N)) * u.Jy, WAVELENGTH * u.AA),
                r"shape \(3, 40\): loop.*\[s for s in spectrum\]",
            ),
        ],
    )
    def test_value(self, spectrum, message):
        spectrum = spectrum()
        with pytest.raises(ValueError, match=message):
            read_spectrum(spectrum)

    def test_wavelengths_that_turn(self):
        """`Spectrum` refuses them, unless they are changed afterwards."""
        spectrum = make()
        spectrum.spectral_axis.view(np.ndarray)[20] = 8660.001
        with pytest.raises(ValueError, match=r"got a turn at 8660.950000 Å \(vacuum\): not monotonic, sort"):
            read_spectrum(spectrum)

    @pytest.mark.parametrize(
        ("flux", "dtype"), [(FLUX * 1j, "complex128"), (FLUX > 1, "bool"), (FLUX.astype(np.complex64), "complex64")]
    )
    def test_flux_that_is_no_real_number(self, flux, dtype):
        with pytest.raises(TypeError, match=f"expected flux as real numbers, got {dtype}"):
            read_spectrum(Spectrum(flux=u.Quantity(flux, u.Jy, dtype=flux.dtype), spectral_axis=WAVELENGTH * u.AA))

    def test_uncertainty_of_a_kind_that_is_not_known(self):
        class Percent(UnknownUncertainty.__base__):
            uncertainty_type = "percent"
            _data_unit_to_uncertainty_unit = _propagate_add = _propagate_subtract = None
            _propagate_multiply = _propagate_divide = None

        spectrum = make()
        spectrum.uncertainty._uncertainty_type = "x"
        spectrum._uncertainty = Percent(SIGMA)
        with pytest.raises(TypeError, match=r"expected a StdDevUncertainty, .*, got Percent"):
            read_spectrum(spectrum)

    @pytest.mark.parametrize(
        ("spectrum", "message"),
        [
            (lambda: Spectrum(FLUX * u.Jy), r"got \[pix\]: calibrate it"),
            (
                lambda: Spectrum(FLUX * u.Jy, np.arange(N) * u.km / u.s),
                r"got \[km / s\] with rest value None and convention None: give both",
            ),
            (
                lambda: Spectrum(FLUX * u.Jy, np.arange(N) * u.km / u.s, rest_value=REST),
                "with rest value 8664.52 Angstrom and convention None",
            ),
        ],
    )
    def test_axis_unit(self, spectrum, message):
        with pytest.raises(u.UnitsError, match=message):
            read_spectrum(spectrum())

    @pytest.mark.parametrize(
        ("unit", "message"),
        [
            (u.dex, r"linear scale, got its logarithm \[dex\]: give 10\*\*flux, and errors"),
            (u.mag, r"got its logarithm \[mag\]: give 10\*\*\(-0.4 \* flux\)"),
            (u.dB, r"got its logarithm \[dB\]: give 10\*\*\(0.1 \* flux\)"),
            (u.mag / u.AA, r"got its logarithm \[mag / Angstrom\]: give the flux itself"),
        ],
    )
    @pytest.mark.parametrize("use", [read_spectrum, sb.clone, lambda spectrum: sb.fit(spectrum, spectrum)])
    def test_flux_on_a_logarithmic_scale(self, unit, message, use):
        with pytest.raises(u.UnitsError, match=message):
            use(Spectrum(flux=FLUX * unit, spectral_axis=WAVELENGTH * u.AA))

    @pytest.mark.parametrize("unit", [u.ABmag, u.dex(u.Jy)])
    def test_flux_as_the_logarithm_of_a_unit(self, unit, tmp_path):
        """Spectrum() refuses these units, but specutils reads them from tables."""
        table = Table({"wavelength": WAVELENGTH * u.AA, "flux": FLUX})
        table["flux"].unit = unit
        table.write(tmp_path / "logarithm.ecsv")
        with pytest.raises(u.UnitsError, match=rf"got its logarithm \[{re.escape(str(unit))}\]: give flux.physical"):
            read_spectrum(load_spectrum(tmp_path / "logarithm.ecsv"))

    @pytest.mark.parametrize("unit", [u.dex, u.mag, u.dB])
    def test_the_remedy_for_a_logarithm_is_its_inverse(self, unit):
        logarithm = (np.log10(FLUX) * u.dex).to(unit)
        with pytest.raises(u.UnitsError) as refused:
            read_spectrum(Spectrum(flux=logarithm, spectral_axis=WAVELENGTH * u.AA))
        remedy = re.search(r"give (.*), and", str(refused.value))[1]
        np.testing.assert_allclose(eval(remedy, {"flux": logarithm.value}), FLUX, rtol=1e-12)

    def test_axis_in_another_unit(self):
        with pytest.raises(u.UnitsError, match=r"got \[K\]") as refused:
            vacuum_wavelength(5000 * u.K)
        assert isinstance(refused.value, ValueError)  # the command line and lists of orders take it for bad input

    def test_an_order_in_wrong_units_does_not_end_a_list(self):
        orders = [make(), Spectrum(flux=FLUX * u.mag, spectral_axis=WAVELENGTH * u.AA), Spectrum(FLUX * u.Jy)]
        read, excluded = read_orders(orders, resolving_power=50_000.0, n_parameter=1)
        assert [order.index for order in read] == [0] and set(excluded) == {1, 2}
        assert "logarithm [mag]" in excluded[1][1] and "got [pix]" in excluded[2][1]

    def test_the_loop_that_the_message_recommends_works(self):
        spectra = [s for s in Spectrum(np.ones((3, N)) * u.Jy, WAVELENGTH * u.AA)]
        assert [len(read_spectrum(s)[0]) for s in spectra] == [N, N, N]


class TestSpectraOut:
    def test_tensors_with_gradient_and_units_of_their_own(self):
        _, frame = read_spectrum(make(meta={"target": "HR 3039"}))
        transmission = torch.full((N,), 0.5, dtype=torch.float32, requires_grad=True)
        out = frame.spectrum(transmission, 0.1 * u.one * np.ones(N), unit="")
        assert out.flux.unit == u.dimensionless_unscaled
        assert out.uncertainty.unit == u.dimensionless_unscaled
        assert out.meta == {"target": "HR 3039", "medium": "vacuum"}
        assert frame.spectrum(np.ones(N) * u.mJy).flux.unit == u.mJy
        assert frame.spectrum(np.ones(N), np.full(N, 10) * u.mJy).uncertainty.array[0] == pytest.approx(0.01)
        assert frame.spectrum(np.ones(N), meta={"a": 1}).meta == {"a": 1, "medium": "vacuum"}

    @pytest.mark.parametrize("name", ["flux", "uncertainty", "mask"])
    def test_refuses_other_lengths(self, name):
        _, frame = read_spectrum(make())
        with pytest.raises(ValueError, match=rf"expected {name} on the 40 pixels .* got shape \(39,\)"):
            frame.spectrum(**({"flux": np.ones(N)} | {name: np.ones(N - 1)}))

    def test_mask_only_where_asked_for(self):
        _, frame = read_spectrum(make())
        assert frame.spectrum(np.ones(N)).mask is None
        assert frame.spectrum(np.where(np.arange(N) == 3, np.nan, 1)).mask.sum() == 1

    def test_velocity_axis_keeps_its_reference(self):
        spectrum = write_down("radio")
        data, frame = read_spectrum(spectrum)
        back = frame.spectrum(data.flux)
        assert back.rest_value == REST
        assert back.velocity_convention == "radio"

    def test_frame_from_plain_arrays(self):
        """As it comes out of a file, the axis is a bare Quantity."""
        frame = SpectrumFrame(WAVELENGTH[::-1] * u.AA, np.arange(N)[::-1], u.Jy, "vacuum", {})
        np.testing.assert_array_equal(frame.spectrum(FLUX).flux.value, FLUX[::-1])

    def test_meta_is_plain(self):
        header = fits.Header([("RA", "01:02"), ("EXPTIME", 30.0), ("FLAG", True), ("EMPTY", None)])
        header["COMMENT"], header["HISTORY"] = "one", "three"
        header["COMMENT"] = "two"
        meta = {"header": header, "m": np.int64(98), "pair": (1, np.float32(0.5)), "none": None, "wcs": WCS(naxis=1)}
        meta |= {"sky": make(), "deep": {1: np.bool_(True)}, "x": np.arange(3)}
        _, frame = read_spectrum(make(meta=meta))
        np.testing.assert_array_equal(frame.meta.pop("x"), np.arange(3))
        assert json.loads(json.dumps(frame.meta)) == {
            "header": {
                "RA": "01:02",
                "EXPTIME": 30.0,
                "FLAG": True,
                "COMMENT": "one\ntwo",
                "HISTORY": "three",
            },
            "m": 98,
            "pair": [1, 0.5],
            "deep": {"1": True},
        }

    def test_spectrum_on(self):
        out = spectrum_on(torch.tensor(WAVELENGTH), torch.tensor(FLUX), "Jy", {"teff": 4700}, torch.tensor(SIGMA))
        data, _ = read_spectrum(out)
        assert_same(data, read_spectrum(make())[0])
        assert out.meta == {"teff": 4700, "medium": "vacuum"}
        assert spectrum_on(WAVELENGTH, FLUX).flux.unit == u.dimensionless_unscaled
        assert type(out) is Spectrum


class TestNumbers:
    @pytest.mark.parametrize(
        ("read", "value", "number"),
        [
            (to_kms, -9.6 * u.km / u.s, -9.6),
            (to_kms, -9600 * u.m / u.s, -9.6),
            (to_kms, -9.6, -9.6),
            (to_kms, 3, 3.0),
            (to_kms, np.float32(0.5), 0.5),
            (to_kms, torch.tensor(2.0, requires_grad=True), 2.0),
            (to_resolving_power, 55_000, 55_000.0),
            (to_resolving_power, 55 * u.Unit("1000"), 55_000.0),
            (to_teff, 4.7 * u.kK, 4700.0),
            (to_teff, 4700, 4700.0),
        ],
    )
    def test_value(self, read, value, number):
        result = read(value)
        assert type(result) is float
        assert result == pytest.approx(number)

    @pytest.mark.parametrize(
        ("read", "value", "error", "message"),
        [
            (
                to_kms,
                5 * u.AA,
                u.UnitsError,
                r"expected rv as one finite number of km / s, .* got a value in \[Angstrom\]",
            ),
            (to_kms, 5 * u.one, u.UnitsError, "expected rv"),
            (to_kms, np.nan, ValueError, "expected rv as one finite number .* got nan"),
            (to_kms, np.inf * u.km / u.s, ValueError, "got inf"),
            (to_kms, [1, 2] * u.km / u.s, ValueError, r"got values of shape \(2,\)"),
            (to_kms, [1.0], ValueError, r"got values of shape \(1,\)"),
            (to_kms, "fast", TypeError, r"got 'fast' \(str\)"),
            (to_kms, None, TypeError, r"got None \(NoneType\)"),
            (to_kms, True, TypeError, r"got True \(bool\)"),
            (to_kms, 1j, TypeError, "complex"),
            (to_resolving_power, 0, ValueError, "expected rv as one finite positive number, got 0"),
            (to_resolving_power, -5e4, ValueError, "got -50000.0"),
            (to_resolving_power, 5 * u.km, u.UnitsError, r"got a value in \[km\]"),
            (to_teff, -4700 * u.K, ValueError, "finite positive number of K"),
            (to_teff, 20 * u.deg_C, u.UnitsError, r"got a value in \[deg_C\]"),
        ],
    )
    def test_error(self, read, value, error, message):
        with pytest.raises(error, match=message):
            read(value, "rv")

    @pytest.mark.parametrize("read", [to_kms, to_resolving_power, to_teff])
    def test_default_name(self, read):
        with pytest.raises(TypeError, match=r"expected (velocity|resolving_power|teff) as"):
            read(None)


HPF = "data/hpf/Goldilocks_20210212T072837_v1.0_0037.spectra.fits"


def read_hpf(path):
    """Through muler, which sets warning filters of its own on import and leaves the file open."""
    with warnings.catch_warnings():
        from muler.hpf import HPFSpectrumList

        warnings.simplefilter("ignore", ResourceWarning)
        orders = HPFSpectrumList.read(str(path))
        gc.collect()
    return orders


class TestRealSpectra:
    def test_hpf_through_muler(self, shared_data):
        """Every order against the FITS file itself, before and after muler's reduction."""
        orders = read_hpf(shared_data / HPF)
        with fits.open(shared_data / HPF) as hdus:
            flux, error, wavelength = (hdus[name].data for name in ("Sci Flux", "Sci Error", "Sci Wavl"))
            for m, order in enumerate(orders):
                data, frame = read_spectrum(order)
                np.testing.assert_array_equal(data.wavelength, wavelength[m])
                good = np.isfinite(flux[m]) & (error[m] > 0) & ~order.mask
                np.testing.assert_array_equal(data.good, good)
                assert data.n_good > 1900
                exposure = np.median(data.flux[data.good].numpy() / flux[m][good])  # muler turns rates into counts
                np.testing.assert_allclose(data.flux[data.good], exposure * flux[m][good], rtol=1e-6)
                np.testing.assert_allclose(data.sigma[data.good], exposure * error[m][good], rtol=1e-6)
                back = frame.spectrum(data.flux, data.sigma, ~data.good)
                assert type(back) is Spectrum
                np.testing.assert_array_equal(back.flux.value[good], order.flux.value[good])
                np.testing.assert_array_equal(back.spectral_axis, order.spectral_axis)
                assert frame.meta["m"] == order.meta["m"]
                assert frame.meta["header"]["OBJECT"] == order.meta["header"]["OBJECT"]
                json.dumps(frame.meta)

    def test_hpf_after_reduction_keeps_gaps_apart(self, shared_data):
        """`remove_nans` drops pixels and `sky_subtract` makes new, unmasked NaN."""
        raw = read_hpf(shared_data / HPF)[5]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = raw.remove_nans().sky_subtract().deblaze().normalize()
        data, _ = read_spectrum(reduced)
        assert 1900 < data.n_good <= len(data)
        assert torch.equal(
            data.good, torch.from_numpy(np.isfinite(reduced.flux.value) & (reduced.uncertainty.array > 0))
        )
        pitch = np.median(np.diff(raw.spectral_axis.value))
        np.testing.assert_allclose(data.edges.diff().squeeze(1), pitch, rtol=0.25)

    def test_wasp_69_table(self, shared_data):
        table = Table.read(shared_data / "data/hpf/WASP_69_hpf_stack.fits")
        wavelength, flux, sigma = (np.array(table[name], float) for name in ("wavelength", "flux", "uncertainty"))
        spectrum = Spectrum(
            flux=flux * u.one, spectral_axis=wavelength * u.AA, uncertainty=StdDevUncertainty(sigma), mask=None
        )
        data, _ = read_spectrum(spectrum)
        assert data.n_good == 2022
        assert len(data) == 2048
        np.testing.assert_array_equal(data.flux[data.good], flux[np.isfinite(flux)])
        reference, _ = read_spectrum(spectrum.with_spectral_axis_unit(u.um))
        assert_same(data, reference)
