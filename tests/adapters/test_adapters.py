"""Files and objects of other packages: HPF through muler, what orders tell, plain tables, whatever specutils reads."""

import copy
import gc
import logging
import re
import subprocess
import sys
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import FK5, EarthLocation, SkyCoord, get_body_barycentric_posvel
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty
from astropy.table import QTable, Table
from astropy.time import Time
from astropy.utils import iers
from instrument_files import GOLDILOCKS, SLOPE, write_hpf
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.adapters import barycentric
from specutils_blase.adapters.files import load_orders, load_spectrum
from specutils_blase.adapters.muler import (
    describe_order,
    good_pixels,
    is_hpf,
    load_hpf,
    quiet_muler,
    resolving_power,
)
from specutils_blase.simulate import hpf_wavelengths
from specutils_blase.spectra.reading import read_spectrum


@pytest.fixture
def hpf_file(tmp_path):
    return write_hpf(tmp_path / "night.fits")


class TestHPF:
    def test_recognised_whatever_it_is_called(self, hpf_file, tmp_path):
        assert is_hpf(hpf_file)
        assert is_hpf(str(hpf_file))
        other = tmp_path / "Goldilocks.fits"
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros(3), name="Sci Flux")]).writeto(other)
        assert not is_hpf(other)
        text = tmp_path / "HPF.txt"
        text.write_text("INSTRUME HPF")
        assert not is_hpf(text)
        with pytest.raises(FileNotFoundError):
            is_hpf(tmp_path / "none.fits")

    def test_one_order_reduced(self, hpf_file):
        spectrum = load_hpf(hpf_file, 5)
        assert spectrum.instrumental_resolution == resolving_power(spectrum) == 55_000
        assert spectrum.meta["m"] == 5
        assert spectrum.meta["header"]["OBJECT"] == "test"
        data, frame = read_spectrum(spectrum)
        assert len(data) == 2047  # remove_nans drops the dead pixel
        assert np.isin(data.wavelength, hpf_wavelengths(5)).all()
        assert np.nanmedian(spectrum.flux.value) == pytest.approx(1.0)
        assert frame.meta["header"]["BRVCORR"] == -14198.0
        # 10 of 100 counts, less 0.93 of the sky's 1, whose own error of 10 counts likewise; the blaze cancels.
        good = data.good
        relative = (data.sigma / data.flux)[good]
        np.testing.assert_allclose(relative, 10 * np.hypot(1, 0.93) / 99.07, rtol=1e-4)

    @pytest.mark.parametrize("folder", ["Goldilocks", "Slope", "elsewhere"])
    def test_variances_are_not_taken_for_errors(self, tmp_path, folder):
        """muler goes by words in the path; we by what is in the file."""
        (tmp_path / folder).mkdir()
        errors = load_hpf(write_hpf(tmp_path / folder / "a.fits", "Error"), 3)
        variances = load_hpf(write_hpf(tmp_path / folder / "b.fits", "Variance"), 3)
        ratio = errors.uncertainty.array / variances.uncertainty.array
        np.testing.assert_allclose(ratio[np.isfinite(ratio)], np.sqrt(10.0), rtol=1e-4)
        assert (errors.meta["pipeline"], variances.meta["pipeline"]) == ("Goldilocks", "HPF")

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            (28, "order must lie between 0 and 27 for HPF, got 28"),
            (-1, "between 0 and 27"),
            (2.5, "order must be a whole number, got 2.5"),
            ("5", "order must be a whole number, got '5'"),
        ],
    )
    def test_bad_order(self, hpf_file, order, message):
        with pytest.raises(ValueError, match=message):
            load_hpf(hpf_file, order)

    def test_other_files_are_refused(self, tmp_path):
        path = tmp_path / "Goldilocks.fits"
        fits.PrimaryHDU().writeto(path)
        with pytest.raises(ValueError, match="not a reduced HPF spectrum: expected FITS with INSTRUME = HPF"):
            load_hpf(path, 5)

    def test_order_without_light(self, tmp_path):
        path = write_hpf(tmp_path / "dark.fits", level=np.nan)
        with pytest.raises(ValueError, match=r"order 5 of .*dark.fits has no finite pixel"):
            load_hpf(path, 5)

    def test_process_is_left_alone(self, hpf_file):
        """In a fresh interpreter: muler's filters are not installed, its files not left open, nothing warned of."""
        code = f"""
import gc, logging, warnings
import numpy, scipy.special, pandas, astroquery, tynt, specutils, torch, importlib_resources  # their filters are theirs
import specutils_blase.adapters.muler as adapter
warnings.simplefilter("error")
before = repr(warnings.filters), logging.getLogger().level
adapter.load_hpf({str(hpf_file)!r}, 5)
gc.collect()
assert (repr(warnings.filters), logging.getLogger().level) == before
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == done.stdout == ""

    @pytest.mark.parametrize("file", [GOLDILOCKS, SLOPE])
    def test_the_same_as_by_hand(self, shared_data, file):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from muler.hpf import HPFSpectrum

            expected = HPFSpectrum(file=str(shared_data / file), order=15)
            expected = expected.remove_nans().sky_subtract().deblaze().normalize()
            gc.collect()  # it leaves the file open
        found = load_hpf(shared_data / file, 15)
        np.testing.assert_array_equal(found.spectral_axis.value, expected.spectral_axis.value)
        np.testing.assert_array_equal(found.flux.value, expected.flux.value)
        np.testing.assert_array_equal(found.uncertainty.array, expected.uncertainty.array)


def test_resolving_power_of_anything_else_is_unknown():
    assert resolving_power(object()) is None


@pytest.fixture(scope="module")
def hpf_orders(tmp_path_factory):
    """Raw orders as muler's objects."""
    return sb.from_hpf(write_hpf(tmp_path_factory.mktemp("hpf") / "night.fits"))


@pytest.fixture
def hpf_order(hpf_orders):
    """Of one's own: multiplying an object takes its uncertainty's parent away."""
    return copy.deepcopy(hpf_orders[5])


def plain(n=100, meta=None, **options):
    """A spectrum of nobody's."""
    axis = np.linspace(10500.0, 10510.0, n) * u.AA
    return Spectrum(spectral_axis=axis, flux=np.ones(n) * u.ct, meta=meta or {}, **options)


OPERATIONS = {
    "remove_nans": lambda s: s.remove_nans(),
    "2 *": lambda s: 2 * s,
    "* 2": lambda s: s * 2,
    "normalize": lambda s: s.normalize(),
    "sky_subtract": lambda s: s.sky_subtract(),
    "deblaze": lambda s: s.deblaze(),
    "trim_edges": lambda s: s.trim_edges(),
    "slice": lambda s: s[100:1900],
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "with_flux_unit": lambda s: s.with_flux_unit(u.Unit("1000 ct")),
    "read back": lambda s: read_spectrum(s)[1].spectrum(read_spectrum(s)[0].flux),
}


class TestDescribeOrder:
    """What is known survives what muler's and specutils' operations leave of an object."""

    def check(self, spectrum):
        info = describe_order(spectrum)
        assert (info.instrument, info.order, info.target, info.resolving_power) == ("HPF", 5, "test", 55_000.0)
        assert (info.barycentric_velocity, info.barycentric_source) == (-14.198, "header BRVCORR")
        return info

    @staticmethod
    def logged(caplog):
        return [record for record in caplog.records if record.name.startswith("specutils_blase")]

    def test_raw(self, hpf_order):
        info = self.check(hpf_order)
        assert info.trim == (4, 2045)  # muler keeps what lies strictly between 3 and 2045
        assert info.time is None  # the simulated header has none
        good = good_pixels(hpf_order)
        assert good.dtype == bool and good.shape == (2048,)
        assert not good[[0, 3, 1000, 2045, 2047]].any() and good[[4, 999, 2044]].all()

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_operations(self, hpf_order, operation):
        with quiet_muler():
            spectrum = OPERATIONS[operation](hpf_order)
        info = self.check(spectrum)
        good = good_pixels(spectrum)
        assert np.isfinite(np.asarray(spectrum.flux.value)[good]).all()
        assert info.trim == (np.flatnonzero(good)[0], np.flatnonzero(good)[-1] + 1)
        # Within the few pixels that `remove_nans` may have dropped, the same part of the order whatever was done to it.
        raw, used = hpf_order.spectral_axis.value, spectrum.spectral_axis.value[good]
        assert operation == "slice" or (used[0] <= raw[6] and used[-1] >= raw[2040])

    def test_trimmed_already(self, hpf_order):
        """Edges are not cut twice, and not by detector pixels where these are unknown."""
        with quiet_muler():
            trimmed = hpf_order.trim_edges()
        assert describe_order(trimmed).trim == (0, len(trimmed.flux))
        assert describe_order(trimmed[500:997]).trim == (0, 496)  # its last one is the dead pixel

    def test_turned_round(self, hpf_order):
        raw = hpf_order
        turned = Spectrum(spectral_axis=raw.spectral_axis[::-1], flux=raw.flux[::-1], meta=raw.meta)
        assert describe_order(turned).trim == (3, 2044)
        np.testing.assert_array_equal(good_pixels(turned), good_pixels(raw)[::-1])

    def test_shifted(self, hpf_order, caplog):
        """muler's shift is recorded nowhere: only the sky fibre stays behind."""
        with quiet_muler():
            shifted = hpf_order.rv_shift(-14.198)
        info = describe_order(shifted)
        assert info.barycentric_velocity is None
        assert info.barycentric_source == "unknown: wavelengths shifted by -14.2 km/s against the sky fibre"
        assert describe_order(shifted, barycentric_velocity=0.0).barycentric_velocity == 0.0
        assert not self.logged(caplog)

    def test_given(self, hpf_order, caplog):
        info = describe_order(hpf_order, barycentric_velocity=-14_200 * u.m / u.s)
        assert (info.barycentric_velocity, info.barycentric_source) == (pytest.approx(-14.2), "given")
        assert not self.logged(caplog)
        with caplog.at_level(logging.WARNING):
            describe_order(hpf_order, barycentric_velocity=14.2)
        assert "barycentric velocity +14.200 km/s given, -14.198 km/s by header BRVCORR" in caplog.text
        assert describe_order(plain(), barycentric_velocity=3).barycentric_velocity == 3.0
        with pytest.raises(u.UnitsError, match="expected barycentric_velocity as one finite number of km / s"):
            describe_order(plain(), barycentric_velocity=3 * u.s)

    @pytest.mark.parametrize("meta", [None, {"header": None}, {"header": "a text"}, {"m": None}, {"m": "5"}])
    def test_of_anything(self, meta):
        info = describe_order(plain(meta=meta))
        assert (info.instrument, info.order, info.target, info.time, info.resolving_power) == (None,) * 5
        assert (info.trim, info.barycentric_velocity, info.barycentric_source) == ((0, 100), None, "unknown: no header")

    def test_of_another_instrument(self):
        header = {"INSTRUME": "UVES", "OBJECT": "HD 1", "DATE-OBS": "2020-01-01T00:00:00", "RA": 10.0, "DEC": 5.0}
        info = describe_order(plain(meta={"header": header, "m": np.int64(7)}))
        assert (info.instrument, info.order, info.target, info.resolving_power) == (None, 7, "HD 1", None)
        assert info.barycentric_source == "unknown: not a header of HPF, IGRINS or NIRSPEC"

    def test_pixels_with_light(self):
        """Each of the three signs of a bad pixel counts, whatever the kind of uncertainty."""
        noise = np.ones(100)
        noise[:2], noise[2] = 0.0, np.nan
        mask = np.zeros(100, int)
        mask[-3:] = 1
        spectrum = plain(uncertainty=InverseVariance(noise / u.ct**2), mask=mask)
        assert describe_order(spectrum).trim == (3, 97)
        assert good_pixels(spectrum).sum() == 94
        assert describe_order(plain(mask=np.ones(100, bool))).trim == (0, 0)
        assert not good_pixels(plain(mask=np.ones(100, bool))).any()

    def test_not_one_order(self):
        stack = Spectrum(spectral_axis=np.arange(1.0, 9.0) * u.um, flux=np.ones((3, 8)) * u.ct)
        with pytest.raises(ValueError, match=r"expected one order, got flux of shape \(3, 8\)"):
            describe_order(stack)

    def test_class_alone(self):
        """An operation that drops the meta leaves at least the class."""
        with quiet_muler():
            from muler.igrins import IGRINSSpectrum

            spectrum = IGRINSSpectrum(spectral_axis=np.linspace(1.6, 1.61, 2048) * u.um, flux=np.ones(2048) * u.ct)
        info = describe_order(spectrum)
        assert (info.instrument, info.resolving_power, info.trim) == ("IGRINS", 45_000.0, (451, 1950))


def projected_velocity(target, time, site):
    """[km/s] of the observer towards the target, by the definition: an independent, non-relativistic sum."""
    longitude, latitude, height = barycentric.SITES[site]
    location = EarthLocation.from_geodetic(longitude * u.deg, latitude * u.deg, height * u.m)
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        earth = get_body_barycentric_posvel("earth", time)[1].xyz
        observer = location.get_gcrs_posvel(time)[1].xyz
    return float(((earth + observer) @ target.cartesian.xyz).to_value(u.km / u.s))


HPF_HEADER = {
    "INSTRUME": "HPF",
    "QRA": "17:57:48.49",
    "QDEC": "+04:41:36.20",
    "QEQUINOX": 2000,
    "QEPOCH": 2000,
    "QPMRA": -798.6,
    "QPMDEC": 10328.1,
    "DATE-OBS": "2018-10-03T01:46:19.850591",
    "ITIME": 330.15,
    "RA": 17.978355,
    "DEC": 4.750597,
}
"""Of GJ 699; its RA and DEC are the telescope's, of date."""

IGRINS_HEADER = {
    "INSTRUME": "IGRINS",
    "TELESCOP": "Gemini South",
    "MJD-OBS": 59186.349733,
    "EXPTIME": "16.0",
    "OBJRA": 106.301325,
    "OBJDEC": -57.57048056,
    "TELRA": "07:05:12.033",
    "TELDEC": "-57:34:08.70",
}


class TestBarycentricVelocity:
    def test_header_first(self):
        header = HPF_HEADER | {"BRVCORR": -25_000.0}
        assert barycentric.barycentric_velocity(header, "HPF") == (-25.0, "header BRVCORR")
        for useless in ("", None, "none", float("nan"), fits.card.Undefined()):
            velocity, source = barycentric.barycentric_velocity(header | {"BRVCORR": useless}, "HPF")
            assert velocity == pytest.approx(-25.9, abs=0.1) and source == "QRA, QDEC at 2018-10-03T01:49:04, HET"

    def test_hpf_against_the_definition(self):
        """Proper motion of 19 years included, which is 13 m/s."""
        time = Time("2018-10-03T01:46:19.850591") + 330.15 / 2 * u.s
        motion = {"pm_ra_cosdec": -798.6 * u.mas / u.yr, "pm_dec": 10328.1 * u.mas / u.yr}
        star = SkyCoord("17:57:48.49", "+04:41:36.20", unit=(u.hourangle, u.deg), obstime="J2000", **motion)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no distance
            star = star.apply_space_motion(time)
        expected = projected_velocity(SkyCoord(star.ra, star.dec), time, "HET")
        velocity, _ = barycentric.computed_velocity(HPF_HEADER, "HPF")
        assert velocity == pytest.approx(expected, abs=0.005)
        still, _ = barycentric.computed_velocity(HPF_HEADER | {"QPMRA": 0, "QPMDEC": 0}, "HPF")
        moved = expected - projected_velocity(SkyCoord("17:57:48.49 +04:41:36.20", unit="hour,deg"), time, "HET")
        assert velocity - still == pytest.approx(moved, abs=1e-5)
        assert moved == pytest.approx(0.0134, abs=0.0005)

    def test_igrins_against_the_definition(self):
        time = Time(59186.349733, format="mjd") + 8 * u.s
        expected = projected_velocity(SkyCoord(106.301325 * u.deg, -57.57048056 * u.deg), time, "Gemini South")
        velocity, source = barycentric.barycentric_velocity(IGRINS_HEADER, "IGRINS")
        assert velocity == pytest.approx(expected, abs=0.005)
        assert source == "OBJRA, OBJDEC at 2020-12-03T08:23:44, Gemini South"

    @pytest.mark.parametrize(
        ("telescope", "observatory", "site"),
        [
            ("2.7-m Harlen J. Smith", "McDonald", "McDonald"),
            ("Discovery Channel Telescope", "Lowell Observatory", "LDT"),
            ("DCT", "", "LDT"),
            ("unknown", "Lowell Observatory", "LDT"),
            ("Gemini South", "Gemini Observatory", "Gemini South"),
            ("Gemini-North", "", "Gemini North"),
            ("VLT", "Paranal", None),
            (None, None, None),
        ],
    )
    def test_where_igrins_was(self, telescope, observatory, site):
        header = {"TELESCOP": telescope, "OBSERVAT": observatory}
        assert barycentric.site_of(header, "IGRINS") == site
        assert barycentric.site_of(header, "HPF") == "HET" and barycentric.site_of(header, "NIRSPEC") == "Keck"

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"TELESCOP": "VLT"}, "unknown: no telescope that IGRINS was at in the header"),
            ({"MJD-OBS": ""}, "unknown: no time of observation in the header"),
            ({"OBJRA": 7.0867}, r"unknown: OBJRA, OBJDEC and TELRA, TELDEC are 48\.\d degrees apart"),  # hours
            ({"OBJRA": "", "TELRA": "239"}, "unknown: no coordinates of the target in the header"),
            ({"OBJRA": 400.0, "TELDEC": ""}, "unknown: no coordinates of the target in the header"),
        ],
    )
    def test_unknown_with_a_reason(self, changes, reason):
        velocity, found = barycentric.barycentric_velocity(IGRINS_HEADER | changes, "IGRINS")
        assert velocity is None
        assert re.fullmatch(reason, found)

    def test_telescope_where_the_target_is_not_told(self):
        velocity, source = barycentric.barycentric_velocity(IGRINS_HEADER | {"OBJRA": None}, "IGRINS")
        assert source.startswith("TELRA, TELDEC at")
        assert velocity == pytest.approx(barycentric.barycentric_velocity(IGRINS_HEADER, "IGRINS")[0], abs=0.01)

    def test_hpf_without_the_target(self):
        """The telescope's RA and DEC are arcminutes off: unknown is better."""
        header = {key: value for key, value in HPF_HEADER.items() if key != "QRA"}
        assert barycentric.barycentric_velocity(header, "HPF") == (None, "unknown: no QRA, QDEC in the header")

    def test_nirspec_degrees_and_hours(self):
        """Numbers are degrees in its older headers, text is hours in the newer; never hours in numbers."""
        header = {"RA": 30.0, "DEC": 10.0, "DATE-OBS": "2001-10-09", "UTC": "15:06:35.0", "ITIME": 60.0}
        velocity, source = barycentric.barycentric_velocity(header, "NIRSPEC")
        assert source == "RA, DEC at 2001-10-09T15:07:05, Keck"
        text = header | {"RA": "02:00:00.0", "DEC": "+10:00:00"}
        assert barycentric.barycentric_velocity(text, "NIRSPEC")[0] == pytest.approx(velocity, abs=1e-9)
        expected = projected_velocity(SkyCoord(30 * u.deg, 10 * u.deg), Time("2001-10-09T15:07:05"), "Keck")
        assert velocity == pytest.approx(expected, abs=0.005)

    def test_equinox(self):
        """Coordinates of another equinox are precessed."""
        now = barycentric.barycentric_velocity(IGRINS_HEADER, "IGRINS")[0]
        then = SkyCoord(106.301325 * u.deg, -57.57048056 * u.deg).transform_to(FK5(equinox="J1975"))
        header = IGRINS_HEADER | {"OBJRA": then.ra.deg, "OBJDEC": then.dec.deg, "OBJEPOCH": 1975.0, "TELRA": ""}
        assert barycentric.barycentric_velocity(header, "IGRINS")[0] == pytest.approx(now, abs=1e-5)
        unprecessed = barycentric.barycentric_velocity(header | {"OBJEPOCH": 2000.0}, "IGRINS")[0]
        assert abs(unprecessed - now) > 0.01

    @pytest.mark.parametrize("year", ["1961", "2045"])
    def test_dates_without_tables(self, year):
        """Neither warning nor error, whatever astropy's tables cover."""
        header = HPF_HEADER | {"DATE-OBS": f"{year}-10-03T01:46:19.850591"}
        assert barycentric.barycentric_velocity(header, "HPF")[0] == pytest.approx(-25.9, abs=0.5)

    def test_network_is_not_asked(self, monkeypatch):
        def refuse(*arguments, **options):
            raise AssertionError("asked the network")

        monkeypatch.setattr("socket.socket.connect", refuse)
        before = iers.conf.auto_download, iers.conf.auto_max_age, iers.conf.iers_degraded_accuracy
        header = HPF_HEADER | {"DATE-OBS": "2026-10-03T01:46:19.9"}
        assert barycentric.barycentric_velocity(header, "HPF")[0] is not None
        assert (iers.conf.auto_download, iers.conf.auto_max_age, iers.conf.iers_degraded_accuracy) == before

    @pytest.mark.parametrize(
        ("header", "instrument", "expected"),
        [
            ({"DATE-OBS": "2015-04-29-09:31:36.896", "EXPTIME": "300.00", "MJD-OBS": ""}, "IGRINS", "09:34:06.896"),
            ({"DATE-OBS": "2015-04-29T09:31:36.896"}, "IGRINS", "09:31:36.896"),
            ({"DATE-OBS": "2015-04-29", "UT": "09:31:36.896", "ITIME": 2.0, "COADDS": 3}, "NIRSPEC", "09:31:39.896"),
            ({"DATE-OBS": "2015-04-29"}, "NIRSPEC", None),
            ({"DATE-OBS": "29/04/15"}, "NIRSPEC", None),
            ({"DATE-OBS": "2015-04-32T09:31:36"}, "HPF", None),
            ({}, "HPF", None),
        ],
    )
    def test_mid_exposure(self, header, instrument, expected):
        time = barycentric.mid_exposure(header, instrument)
        assert (time if time is None else time.isot) == (expected and f"2015-04-29T{expected}")

    def test_hr_3039(self, shared_data):
        """astropy's way against the pipeline's: the same to 10 cm/s, where 50 m/s were asked for."""
        header = fits.getheader(shared_data / GOLDILOCKS)
        velocity, source = barycentric.computed_velocity(header, "HPF")
        assert source == "QRA, QDEC at 2021-02-12T07:31:50, HET"
        assert velocity == pytest.approx(header["BRVCORR"] / 1000, abs=1e-4)
        assert describe_order(load_hpf(shared_data / GOLDILOCKS, 5)).barycentric_velocity == header["BRVCORR"] / 1000

    def test_gj_699(self, shared_data):
        """No BRVCORR in this pipeline's header: target and time as quoted above."""
        assert "BRVCORR" not in fits.getheader(shared_data / SLOPE)
        (velocity,) = {describe_order(order).barycentric_velocity for order in sb.from_hpf(shared_data / SLOPE)[::9]}
        assert velocity == barycentric.computed_velocity(HPF_HEADER, "HPF")[0] == pytest.approx(-25.915, abs=0.001)


class TestFiles:
    wavelength = np.linspace(10500.0, 10510.0, 50)
    flux = 1.0 + 0.01 * np.arange(50)

    def check(self, spectrum, noise=True, rtol=1e-9):
        data, _ = read_spectrum(spectrum)
        np.testing.assert_allclose(data.wavelength, self.wavelength, rtol=rtol)
        np.testing.assert_allclose(data.flux, self.flux, rtol=rtol)
        assert data.noise_known == noise
        if noise:
            np.testing.assert_allclose(data.sigma, 0.1, rtol=1e-6)

    @pytest.mark.parametrize("suffix", ["ecsv", "fits"])
    @pytest.mark.parametrize("names", [("wavelength", "flux", "uncertainty"), ("WAVE", "Flux", "err")])
    def test_plain_table(self, tmp_path, suffix, names):
        path = tmp_path / f"table.{suffix}"
        Table([self.wavelength, self.flux, np.full(50, 0.1)], names=names).write(path)
        self.check(load_spectrum(path))

    def test_plain_table_with_units_and_without_noise(self, tmp_path):
        path = tmp_path / "table.ecsv"
        QTable([self.wavelength / 10 * u.nm, self.flux], names=("wavelength", "flux")).write(path)
        self.check(load_spectrum(path), noise=False)

    def test_text_columns(self, tmp_path):
        path = tmp_path / "table.csv"
        Table([self.wavelength, self.flux], names=("wavelength", "flux")).write(path)
        self.check(load_spectrum(path), noise=False)

    def test_missing_values_are_bad_pixels(self, tmp_path):
        path = tmp_path / "table.fits"
        flux = self.flux.copy()
        flux[7] = np.nan
        Table([self.wavelength, flux, np.full(50, 0.1)], names=("wavelength", "flux", "uncertainty")).write(path)
        data, _ = read_spectrum(load_spectrum(path))
        assert data.n_good == 49 and not data.good[7]

    def test_what_specutils_writes(self, tmp_path):
        path = tmp_path / "spectrum.fits"
        spectrum = Spectrum(
            spectral_axis=self.wavelength * u.AA,
            flux=self.flux * u.Jy,
            uncertainty=StdDevUncertainty(np.full(50, 0.1) * u.Jy),
        )
        spectrum.write(path, format="tabular-fits")
        self.check(load_spectrum(path))
        self.check(load_spectrum(path, format="tabular-fits"))
        self.check(load_spectrum(path, order=0))
        with pytest.raises(ValueError, match="holds 1 spectra, order must lie between 0 and 0, got 3"):
            load_spectrum(path, order=3)

    def test_hpf_needs_an_order(self, hpf_file):
        with pytest.raises(ValueError, match="holds 28 orders of HPF: choose one, order=0 to 27"):
            load_spectrum(hpf_file)
        assert load_spectrum(hpf_file, order=4).meta["m"] == 4

    def test_wasp_69(self, shared_data):
        data, _ = read_spectrum(load_spectrum(shared_data / "data/hpf/WASP_69_hpf_stack.fits"))
        assert (len(data), data.n_good, data.noise_known) == (2048, 2022, True)

    @pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "# notes\nnot a spectrum at all"])
    def test_unreadable(self, tmp_path, content):
        path = tmp_path / "notes.txt"
        path.write_text(content)
        with pytest.raises(ValueError, match=r"cannot read a spectrum from .*notes\.txt \(.*give its specutils format"):
            load_spectrum(path)

    @pytest.mark.parametrize("kind", ["empty", "image", "cube", "catalogue", "words", "cut"])
    def test_a_fits_file_that_is_no_spectrum(self, tmp_path, kind):
        """File and reason are named, by the reader of one spectrum as by that of many."""
        path = tmp_path / f"{kind}.fits"
        catalogue = QTable({"ra": [1.0, 2.0] * u.deg, "mag": [3.0, 4.0]})
        if kind in ("empty", "image", "cube"):
            fits.PrimaryHDU({"empty": None, "image": np.ones((20, 30)), "cube": np.ones((4, 5, 6))}[kind]).writeto(path)
        elif kind == "words":
            QTable({"wavelength": ["red", "blue"], "flux": [3.0, 4.0]}).write(path)
        else:
            catalogue.write(path)
            path.write_bytes(path.read_bytes()[: 4000 if kind == "cut" else None])
        for read in (load_spectrum, lambda path: load_orders([path])):
            with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
                warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # astropy says that the file is cut short
                read(path)
            assert re.match(rf"cannot read a spectrum from .*{kind}\.fits \(.+\): give its", str(caught.value))

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_spectrum(tmp_path / "none.fits")
        with pytest.raises(IsADirectoryError, match="got the folder"):
            load_spectrum(tmp_path)
