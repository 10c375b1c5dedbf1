"""Files and objects of other packages: HPF through muler, plain tables, whatever specutils reads."""

import gc
import subprocess
import sys
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable, Table
from specutils import Spectrum

from specutils_blase.adapters.files import load_spectrum
from specutils_blase.adapters.muler import HPF_ORDERS, is_hpf, load_hpf, resolving_power
from specutils_blase.simulate import hpf_wavelengths
from specutils_blase.spectrum import read_spectrum

GOLDILOCKS = "data/hpf/Goldilocks_20210212T072837_v1.0_0037.spectra.fits"
SLOPE = "data/hpf/Slope-20181003T014556_R01.optimal.fits"


def write_hpf(path, noise="Error", level=100.0):
    """A file laid out as HPF's pipelines do, of flat spectra with one dead pixel."""
    wavelength = np.array([hpf_wavelengths(order) for order in range(HPF_ORDERS)])
    flux = np.full(wavelength.shape, level, "f4")
    flux[:, 1000] = np.nan
    sky = np.full(wavelength.shape, 1.0, "f4")
    sigma = np.full(wavelength.shape, 10.0, "f4")
    header = fits.Header({"INSTRUME": "HPF", "TELESCOP": "HET", "OBJECT": "test", "BRVCORR": -14198.0})
    units = [fits.PrimaryHDU(header=header)]
    for name, values in (("Flux", (flux, sky, sky)), (noise, (sigma,) * 3), ("Wavl", (wavelength,) * 3)):
        units += [
            fits.ImageHDU(array, name=f"{fibre} {name}")
            for fibre, array in zip(("Sci", "Sky", "Cal"), values, strict=True)
        ]
    fits.HDUList(units).writeto(path)
    return path


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

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_spectrum(tmp_path / "none.fits")
        with pytest.raises(IsADirectoryError, match="got the folder"):
            load_spectrum(tmp_path)
