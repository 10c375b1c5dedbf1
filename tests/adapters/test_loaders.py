"""Whole files of HPF, IGRINS and NIRSPEC: read, recognised, refused."""

import gzip
import shutil
import subprocess
import sys
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.io.registry import get_formats, identify_format
from astropy.table import QTable, Table
from astropy.utils.exceptions import AstropyUserWarning
from instrument_files import GOLDILOCKS, N_ROW, SLOPE, igrins_arrays, write_hpf, write_igrins
from specutils import Spectrum, SpectrumList

import specutils_blase as sb
from specutils_blase.adapters.files import load_orders, load_spectrum
from specutils_blase.adapters.identify import instrument_of
from specutils_blase.adapters.muler import describe_order, quiet_muler
from specutils_blase.adapters.orders import order_lines, order_table
from specutils_blase.adapters.registration import register_readers
from specutils_blase.spectra.reading import read_spectrum

H = "data/igrins/SDCH_20201202_0059.spec_a0v.fits"
K = "data/igrins/SDCK_20201202_0059.spec_a0v.fits"
RIK_12 = "data/igrins/SDCK_20150428_0222.spec_a0v.fits"
NIRSPEC = "data/nirspec/NS.20011009.54395_60_flux_tbl.fits"

NO_VARIANCES = "no variances of .*: the noise is unknown"
NO_HEADER = "no header of .*: target, time of observation and barycentric velocity are unknown"

"""Orders of a simulated IGRINS file, the reddest first, as the pipeline has them."""


def write_nirspec(folder, order=60, header=None, companion_folder=None):
    """An order's table as NSDRP writes it, and its companion with the header if there is one."""
    wavelength = 7.6e5 / order * (1.0 + 0.0074 * np.linspace(-1.0, 1.0, 1024))
    flux = np.linspace(100.0, 200.0, 1024)
    flux[5] = np.nan
    columns = {"col": np.arange(1024), "wave (A)": wavelength, "flux (cnts)": flux, "noise (cnts)": np.full(1024, 2.0)}
    path = folder / f"NS.20011009.54395_{order}_flux_tbl.fits"
    Table(columns | {"sky (cnts)": np.full(1024, 3.0)}).write(path)
    if header is not None:
        name = path.name.replace("_flux_tbl.", "_flux.")
        fits.PrimaryHDU(header=fits.Header(header)).writeto((companion_folder or folder) / name)
    return path


NIRSPEC_HEADER = {
    "INSTRUME": "NIRSPEC",
    "OBJECT": "HD 1",
    "RA": 30.0,
    "DEC": 10.0,
    "EQUINOX": 2000.0,
    "DATE-OBS": "2001-10-09",
    "UTC": "15:06:35.0",
    "ITIME": 60.0,
    "COADDS": 2,
}


def check_orders(spectra, band):
    """Blue to red, rising in vacuum Å, with the arrays and numbers of the grating that were written."""
    wavelength, flux, variance = (array[::-1] for array in igrins_arrays(band))
    for i, spectrum in enumerate(spectra):
        np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), 1e4 * wavelength[i], rtol=1e-15)
        np.testing.assert_array_equal(spectrum.flux.value, flux[i])
        if spectrum.uncertainty is not None:
            np.testing.assert_allclose(spectrum.uncertainty.array, np.sqrt(variance[i]), rtol=1e-15)
        assert spectrum.mask[7] and spectrum.mask.sum() == 1
    first = {"H": 98, "K": 71}[band]
    assert [s.meta["m"] for s in spectra] == list(range(first + N_ROW - 1, first - 1, -1))
    assert spectra[0].meta["header"]["OBJECT"] == "CPD-57 1131"


class TestHPF:
    @pytest.mark.parametrize("noise", ["Error", "Variance"])
    @pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["text", "Path"])
    def test_whatever_it_is_called(self, tmp_path, noise, as_path):
        path = write_hpf(tmp_path / "night 1.fits", noise)
        spectra = sb.from_hpf(as_path(path))
        assert type(spectra).__name__ == "HPFSpectrumList" and isinstance(spectra, SpectrumList)
        assert [s.meta["m"] for s in spectra] == list(range(28))
        with fits.open(path) as units:
            for order, spectrum in enumerate(spectra):
                np.testing.assert_array_equal(spectrum.flux.value, units["Sci Flux"].data[order])
                np.testing.assert_array_equal(spectrum.spectral_axis.value, units["Sci Wavl"].data[order])
                np.testing.assert_array_equal(spectrum.meta["sky"].flux.value, units["Sky Flux"].data[order])
                sigma = 10.0 if noise == "Error" else np.sqrt(10.0)
                np.testing.assert_allclose(spectrum.uncertainty.array, sigma, rtol=1e-6)
        assert spectra[3].mask[1000] and not spectra[3].mask[999]

    def test_methods_of_muler_work(self, tmp_path):
        spectra = sb.from_hpf(write_hpf(tmp_path / "a.fits"))
        with quiet_muler():
            spectra.normalization_order_index = 0
            reduced = spectra.remove_nans().sky_subtract().deblaze().trim_edges()
        assert type(reduced).__name__ == "HPFSpectrumList"
        data, _ = read_spectrum(reduced[5])
        assert data.n_good > 2000

    def test_compressed(self, tmp_path):
        path = tmp_path / "a.fits.gz"
        path.write_bytes(gzip.compress(write_hpf(tmp_path / "a.fits").read_bytes(), 1))
        assert instrument_of(path) == "HPF"
        assert len(sb.from_hpf(path)) == 28

    @pytest.mark.parametrize("file", [GOLDILOCKS, SLOPE])
    def test_the_same_as_by_hand(self, shared_data, file):
        path = shared_data / file
        with quiet_muler():
            from muler.hpf import HPFSpectrumList

            expected = HPFSpectrumList.read(str(path))
        found = sb.from_hpf(path)
        assert len(found) == len(expected) == 28
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.flux.value, theirs.flux.value)
            np.testing.assert_array_equal(ours.uncertainty.array, theirs.uncertainty.array)
            np.testing.assert_array_equal(ours.spectral_axis.value, theirs.spectral_axis.value)
            np.testing.assert_array_equal(ours.mask, theirs.mask)
            assert ours.meta["m"] == theirs.meta["m"]
            assert np.all(np.diff(ours.spectral_axis.value) > 0)
        with fits.open(path) as units:
            np.testing.assert_array_equal(found[15].flux.value, units[1].data[15].astype(float))
            np.testing.assert_array_equal(found[15].spectral_axis.value, units[7].data[15])
        ends = found[0].spectral_axis.value[0], found[-1].spectral_axis.value[-1]
        assert (round(ends[0]), round(ends[1])) == (8079, 12786)


class TestIGRINS:
    @pytest.mark.parametrize("band", ["H", "K"])
    @pytest.mark.parametrize("form", ["later", "plain", "archive"])
    def test_forms_with_variances(self, tmp_path, band, form):
        path = write_igrins(tmp_path / "whatever.spec.fits", band, form)
        assert instrument_of(path) == "IGRINS"
        spectra = sb.from_igrins(path)
        assert type(spectra).__name__ == "IGRINSSpectrumList"
        assert all(s.uncertainty is not None for s in spectra)
        check_orders(spectra, band)

    def test_earlier_form_without_variances(self, tmp_path):
        path = write_igrins(tmp_path / "a.fits", "K", "earlier")
        with pytest.warns(AstropyUserWarning, match=NO_VARIANCES):
            spectra = sb.from_igrins(path)
        assert type(spectra[0]).__name__ == "IGRINSSpectrum"
        assert all(s.uncertainty is None and s.instrumental_resolution == 45_000 for s in spectra)
        check_orders(spectra, "K")
        data, _ = read_spectrum(spectra[0])
        assert data.n_good == 2047 and not data.noise_known

    def test_plain_form_alone(self, tmp_path):
        path = write_igrins(tmp_path / "a.spec.fits", "K", "plain")
        (tmp_path / "a.variance.fits").unlink()
        with pytest.warns(AstropyUserWarning, match=NO_VARIANCES):
            check_orders(sb.from_igrins(path), "K")

    @pytest.mark.parametrize("reverse", [False, True])
    def test_pair(self, tmp_path, reverse):
        paths = [write_igrins(tmp_path / f"{band}.fits", band) for band in "HK"]
        spectra = sb.from_igrins(paths[::-1] if reverse else tuple(map(str, paths)))
        assert type(spectra).__name__ == "IGRINSSpectrumList" and len(spectra) == 2 * N_ROW
        check_orders(spectra[:N_ROW], "H")
        check_orders(spectra[N_ROW:], "K")

    def test_partner_is_not_guessed(self, tmp_path):
        for band in "HK":
            write_igrins(tmp_path / f"SDC{band}_20201202_0059.spec_a0v.fits", band)
        check_orders(sb.from_igrins(tmp_path / "SDCH_20201202_0059.spec_a0v.fits"), "H")

    def test_extension(self, tmp_path):
        path = write_igrins(tmp_path / "a.fits", "H")
        divided, target = sb.from_igrins(path), sb.from_igrins(path, extension="tgt_spec")
        np.testing.assert_array_equal(target[1].flux.value, 2 * divided[1].flux.value)
        np.testing.assert_allclose(target[1].uncertainty.array, 2 * divided[1].uncertainty.array, rtol=1e-15)
        with pytest.warns(AstropyUserWarning, match=NO_VARIANCES):
            standard = sb.from_igrins(path, extension="A0V_SPEC")
        assert describe_order(standard[0]).target == "HIP 35183"  # its own, not the target's
        with pytest.raises(ValueError, match=r"a\.fits is not .*with SPEC and WAVELENGTH of one shape"):
            sb.from_igrins(path, extension="SPEC")

    @pytest.mark.parametrize(
        ("band", "header", "message"),
        [
            ("H", {}, "not the H and K spectra of one exposure: both are H"),
            ("K", {"OBJECT": "HD 1"}, "the targets are CPD-57 1131 and HD 1"),
            ("K", {"MJD-OBS": 59186.349733 + 0.1}, "they are 144 minutes apart"),
        ],
    )
    def test_no_pair(self, tmp_path, band, header, message):
        paths = [write_igrins(tmp_path / "a.fits", "H"), write_igrins(tmp_path / "b.fits", band, **header)]
        with pytest.raises(ValueError, match=rf"a\.fits and .*b\.fits are .*{message}"):
            sb.from_igrins(paths)
        with pytest.raises(ValueError, match="got 3 files"):
            sb.from_igrins([*paths, paths[0]])

    @pytest.mark.parametrize("scale", [1e4, 1e-3, -1.0])
    def test_wrong_unit_of_wavelength(self, tmp_path, scale):
        path = write_igrins(tmp_path / "a.fits", "H")
        with fits.open(path, mode="update", memmap=False) as units:
            units["WAVELENGTH"].data *= scale
        with pytest.raises(ValueError, match=r"a\.fits holds wavelengths from .*: expected .* µm|do not rise"):
            sb.from_igrins(path)

    def test_turning_wavelengths(self, tmp_path):
        path = write_igrins(tmp_path / "a.fits", "H")
        with fits.open(path, mode="update", memmap=False) as units:
            units["WAVELENGTH"].data[2, 50] = 1.6
        with pytest.raises(ValueError, match=r"row 2 of .*a\.fits is no spectrum: its wavelengths do not rise"):
            sb.from_igrins(path)

    def test_variances_of_another_spectrum(self, tmp_path):
        path = write_igrins(tmp_path / "a.spec.fits", "H", "plain")
        fits.PrimaryHDU(np.ones((2, 2048))).writeto(tmp_path / "a.variance.fits", overwrite=True)
        with pytest.raises(ValueError, match=r"a\.variance\.fits does not hold the variances of .*a\.spec\.fits"):
            sb.from_igrins(path)

    @pytest.mark.parametrize("path", [[], None, 3])
    def test_no_path(self, path):
        with pytest.raises(TypeError, match="expected a path or a sequence of paths"):
            sb.from_igrins(path)

    @pytest.mark.parametrize(("file", "first"), [(H, 98), (K, 71)])
    def test_the_same_as_by_hand(self, shared_data, file, first):
        path = shared_data / file
        with quiet_muler():
            from muler.igrins import IGRINSSpectrumList

            expected = IGRINSSpectrumList.read(str(path))
        found = sb.from_igrins(path)
        assert len(found) == len(expected) == {98: 28, 71: 26}[first]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.flux.value, theirs.flux.value)
            np.testing.assert_array_equal(ours.uncertainty.array, theirs.uncertainty.array)
            np.testing.assert_array_equal(ours.spectral_axis.value, theirs.spectral_axis.value)
            assert ours.meta["m"] == theirs.meta["m"]
            assert np.all(np.diff(ours.spectral_axis.value) > 0)
        assert found[-1].meta["m"] == first

    def test_real_pair(self, shared_data):
        spectra = sb.from_igrins([shared_data / K, shared_data / H], extension="TGT_SPEC")
        assert [s.meta["m"] for s in spectra] == [*range(125, 97, -1), *range(96, 70, -1)]
        assert {describe_order(s).target for s in spectra} == {"CPD-57 1131"}
        starts = [s.spectral_axis.value[0] for s in spectra]
        assert starts == sorted(starts)
        assert (round(starts[0]), round(spectra[-1].spectral_axis.value[-1])) == (14297, 25188)
        with fits.open(shared_data / H) as units:
            np.testing.assert_array_equal(spectra[4].flux.value, units["TGT_SPEC"].data[23].astype(float))

    def test_rik_12(self, shared_data):
        """The earlier form, in which muler takes another unit for the wavelengths."""
        with pytest.warns(AstropyUserWarning, match=NO_VARIANCES):
            spectra = sb.from_igrins(shared_data / RIK_12)
        assert len(spectra) == 26 and [spectra[0].meta["m"], spectra[-1].meta["m"]] == [96, 71]
        with fits.open(shared_data / RIK_12) as units:
            np.testing.assert_array_equal(spectra[3].flux.value, units[0].data[22])
            np.testing.assert_allclose(spectra[3].spectral_axis.value, 1e4 * units["WAVELENGTH"].data[22], rtol=1e-15)
        info = describe_order(spectra[3])
        assert info.target == "RIK-12" and info.time.isot.startswith("2015-04-29T09:34")
        assert info.barycentric_velocity is None  # the header's coordinates are whole degrees, under other names
        assert info.barycentric_source == "unknown: no coordinates of the target in the header"


class TestNIRSPEC:
    def test_with_header(self, tmp_path):
        path = write_nirspec(tmp_path, header=NIRSPEC_HEADER)
        (spectrum,) = spectra = sb.from_nirspec(path)
        assert type(spectra).__name__ == "KeckNIRSPECSpectrumList"
        table = Table.read(path)
        np.testing.assert_array_equal(spectrum.flux.value, table["flux (cnts)"])
        np.testing.assert_array_equal(spectrum.spectral_axis.to_value(u.AA), table["wave (A)"])
        np.testing.assert_array_equal(spectrum.meta["sky"].flux.value, 3.0)
        assert spectrum.mask[5] and spectrum.mask.sum() == 1
        info = describe_order(spectrum)
        assert (info.instrument, info.order, info.target, info.resolving_power) == ("NIRSPEC", 60, "HD 1", 20_000)
        assert info.time.isot == "2001-10-09T15:07:35.000"
        assert abs(info.barycentric_velocity) < 31

    def test_header_in_the_parallel_folder(self, tmp_path):
        for name in ("fits", "fitstbl"):
            (tmp_path / name / "flux").mkdir(parents=True)
        path = write_nirspec(tmp_path / "fitstbl/flux", header=NIRSPEC_HEADER, companion_folder=tmp_path / "fits/flux")
        assert describe_order(sb.from_nirspec(path)[0]).target == "HD 1"

    def test_several_orders(self, tmp_path):
        paths = [write_nirspec(tmp_path, order, NIRSPEC_HEADER) for order in (58, 61, 60)]
        assert [s.meta["m"] for s in sb.from_nirspec(paths)] == [61, 60, 58]

    def test_orders_of_several_exposures(self, tmp_path):
        paths = [write_nirspec(tmp_path, order, NIRSPEC_HEADER) for order in (58, 61)]
        paths[1] = paths[1].rename(tmp_path / "NS.20011009.54400_61_flux_tbl.fits")
        with pytest.raises(ValueError, match=r"of one NIRSPEC exposure, got files of NS.20011009.54395, NS.*54400"):
            sb.from_nirspec(paths)

    def test_without_header(self, tmp_path):
        path = write_nirspec(tmp_path)
        with pytest.warns(AstropyUserWarning, match=NO_HEADER):
            (spectrum,) = sb.from_nirspec(path)
        info = describe_order(spectrum)
        assert (info.order, info.target, info.time, info.barycentric_velocity) == (60, None, None, None)
        assert info.barycentric_source == "unknown: no header"
        renamed = path.rename(tmp_path / "order.fits")
        with pytest.warns(AstropyUserWarning, match=NO_HEADER):
            assert describe_order(sb.from_nirspec(renamed)[0]).order is None

    def test_header_of_another_instrument(self, tmp_path):
        path = write_nirspec(tmp_path, header={"INSTRUME": "HIRES"})
        with pytest.raises(ValueError, match=r"_60_flux\.fits, beside .*, is not NIRSPEC's: INSTRUME = HIRES"):
            sb.from_nirspec(path)

    def test_real_file(self, shared_data):
        with pytest.warns(AstropyUserWarning, match=NO_HEADER):
            (spectrum,) = sb.from_nirspec(shared_data / NIRSPEC)
        table = fits.getdata(shared_data / NIRSPEC, 1)
        np.testing.assert_array_equal(spectrum.flux.value, table["flux (cnts)"])
        np.testing.assert_array_equal(spectrum.uncertainty.array, table["noise (cnts)"])
        assert spectrum.spectral_axis.value[[0, -1]].round().tolist() == [12615, 12802]
        assert describe_order(spectrum).trim == (11, 1000)
        with quiet_muler():
            from muler.nirspec import KeckNIRSPECSpectrum

            expected = KeckNIRSPECSpectrum(file=str(shared_data / NIRSPEC))
        np.testing.assert_array_equal(spectrum.mask, expected.mask)
        assert {k: spectrum.meta[k] for k in ("pipeline", "m", "header")} == {
            "pipeline": "NSDRP",
            "m": 60,
            "header": None,
        }


LOADERS = {"HPF": sb.from_hpf, "IGRINS": sb.from_igrins, "NIRSPEC": sb.from_nirspec}


@pytest.fixture
def night(tmp_path):
    """A good file of each instrument."""
    return {
        "HPF": write_hpf(tmp_path / "hpf.fits"),
        "IGRINS": write_igrins(tmp_path / "igrins.fits", "H"),
        "NIRSPEC": write_nirspec(tmp_path, header=NIRSPEC_HEADER),
    }


@pytest.mark.parametrize("instrument", LOADERS)
class TestBadFiles:
    def test_missing(self, instrument, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.fits"):
            LOADERS[instrument](tmp_path / "none.fits")
        with pytest.raises(IsADirectoryError, match=f"expected a file of {instrument}, got the folder {tmp_path}"):
            LOADERS[instrument](tmp_path)

    @pytest.mark.parametrize("content", [b"", b"SIMP", b"wavelength,flux\n1,2\n", b"\x89PNG\r\n"])
    def test_not_fits(self, instrument, tmp_path, content):
        path = tmp_path / "a.fits"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.fits is not a FITS file: expected one of {instrument}"):
            LOADERS[instrument](path)

    def test_of_another_instrument(self, instrument, night):
        for other, path in night.items():
            if other != instrument:
                with pytest.raises(ValueError, match=rf"{path.name} is not a .*{instrument} spectrum.*, got .* units"):
                    LOADERS[instrument](path)

    @pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
    def test_cut_short(self, instrument, night, part):
        """In the first header nothing is left, in the data it is noticed, in a later header there are too few units."""
        content = night[instrument].read_bytes()
        night[instrument].write_bytes(content[: max(6, int(part * len(content)))])
        reasons = "is damaged, or cut short|is cut short, in the last of|is not a .*, got .* units"
        with pytest.raises(ValueError, match=rf"{night[instrument].name} ({reasons})"):
            LOADERS[instrument](night[instrument])

    def test_cut_between_units(self, instrument, night):
        with fits.open(night[instrument], memmap=False) as units:
            fits.HDUList(units[: len(units) // 2]).writeto(night[instrument], overwrite=True)
        with pytest.raises(
            ValueError, match=rf"{night[instrument].name} is not a .*{instrument} spectrum.*, got .* units"
        ):
            LOADERS[instrument](night[instrument])

    def test_not_compressed_after_all(self, instrument, tmp_path):
        path = tmp_path / "a.fits.gz"
        path.write_bytes(b"\x1f\x8b\x08 nothing that decompresses")
        with pytest.raises(ValueError, match=r"a\.fits\.gz is damaged, or cut short"):
            LOADERS[instrument](path)
        assert instrument_of(path) is None

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda w: np.where(w == w.flat[9], w.flat[8], w), "row 0 of .* do not rise from pixel to pixel"),
            (lambda w: w[..., ::-1], "row 0 of .* do not rise from pixel to pixel"),
            (lambda w: np.where(w == w.flat[9], np.nan, w), "row 0 of .* not all its wavelengths are finite"),
            (lambda w: w * 1e-5, "holds wavelengths from .*: expected .*"),
        ],
    )
    def test_wavelengths_that_are_none(self, instrument, night, change, reason):
        """specutils would take repeated ones, and any unit."""
        with fits.open(night[instrument], mode="update", memmap=False) as units:
            if instrument == "NIRSPEC":
                units[1].data["wave (A)"] = change(np.array(units[1].data["wave (A)"]))
            else:
                unit = units["WAVELENGTH" if instrument == "IGRINS" else "Sci Wavl"]
                unit.data = change(np.array(unit.data))
        with pytest.raises(ValueError, match=reason) as error:
            LOADERS[instrument](night[instrument])
        assert str(night[instrument]) in str(error.value)

    def test_nothing_but_nan(self, instrument, night):
        with fits.open(night[instrument], mode="update", memmap=False) as units:
            if instrument == "NIRSPEC":
                units[1].data["flux (cnts)"] = np.nan
            else:
                units[1].data[:] = np.nan
        with pytest.raises(ValueError, match=rf"{night[instrument].name} has no finite pixel"):
            LOADERS[instrument](night[instrument])


class TestRegistration:
    @pytest.mark.parametrize("instrument", LOADERS)
    def test_recognised(self, night, instrument):
        classes = {"HPF": "HPFSpectrumList", "IGRINS": "IGRINSSpectrumList", "NIRSPEC": "KeckNIRSPECSpectrumList"}
        path = night[instrument]
        for spectra in (
            SpectrumList.read(str(path)),
            SpectrumList.read(path),
            SpectrumList.read(path, format=instrument),
        ):
            assert type(spectra).__name__ == classes[instrument]
            expected = LOADERS[instrument](path)
            assert len(spectra) == len(expected)
            np.testing.assert_array_equal(spectra[0].flux.value, expected[0].flux.value)

    def test_options_pass(self, night):
        spectra = SpectrumList.read(night["IGRINS"], extension="TGT_SPEC")
        np.testing.assert_array_equal(spectra[0].flux.value, 2 * sb.from_igrins(night["IGRINS"])[0].flux.value)

    def test_pair(self, night, tmp_path):
        paths = [str(night["IGRINS"]), str(write_igrins(tmp_path / "k.fits", "K"))]
        spectra = SpectrumList.read(paths, format="IGRINS")
        check_orders(spectra[:N_ROW], "H")
        check_orders(spectra[N_ROW:], "K")

    def test_our_reader_before_the_general_ones(self, tmp_path):
        """specutils' "iraf" claims the earlier form, and reads something else."""
        path = write_igrins(tmp_path / "a.fits", "K", "earlier")
        with pytest.warns(AstropyUserWarning, match=NO_VARIANCES):
            check_orders(SpectrumList.read(path), "K")

    def test_errors_are_ours(self, night):
        content = night["HPF"].read_bytes()
        night["HPF"].write_bytes(content[:-3000])
        with pytest.raises(ValueError, match=r"hpf\.fits is cut short, in the last of 10 units"):
            SpectrumList.read(night["HPF"])

    def test_other_files_stay_with_their_readers(self, tmp_path):
        axis = np.linspace(10500.0, 10510.0, 50) * u.AA
        path = tmp_path / "a.fits"
        Spectrum(spectral_axis=axis, flux=np.ones(50) * u.Jy).write(path, format="tabular-fits")
        assert instrument_of(path) is None
        assert len(SpectrumList.read(path)) == 1
        (tmp_path / "b.fits").write_bytes(b"SIMPLE nothing that FITS is like")
        assert instrument_of(tmp_path / "b.fits") is None
        for instrument in LOADERS:
            assert instrument not in identify_format("read", SpectrumList, str(tmp_path / "b.fits"), None, [], {})
            assert instrument not in identify_format("write", SpectrumList, str(tmp_path / "b.fits"), None, [], {})

    def test_again_is_harmless(self):
        before = get_formats(SpectrumList)
        register_readers()
        assert (get_formats(SpectrumList) == before).all()
        assert set(LOADERS) <= set(before["Format"])

    def test_without_muler_until_read(self):
        """In a fresh interpreter, and with the process as it was afterwards."""
        code = """
import sys
from astropy.io.registry import get_formats
from specutils import SpectrumList
assert "IGRINS" not in get_formats(SpectrumList)["Format"]
import specutils_blase
assert {"HPF", "IGRINS", "NIRSPEC"} <= set(get_formats(SpectrumList)["Format"])
assert specutils_blase.from_hpf
assert "muler" not in sys.modules and "torch" not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def test_process_is_left_alone(self, night):
        code = f"""
import gc, logging, warnings
import numpy, scipy.special, pandas, astroquery, tynt, specutils, matplotlib.pyplot, importlib_resources
import specutils_blase.adapters.loaders as loaders
warnings.simplefilter("error")
def state():
    return repr(warnings.filters), logging.getLogger().level, logging.getLogger("logger").level
before = state()
loaders.from_hpf({str(night["HPF"])!r})
loaders.from_igrins({str(night["IGRINS"])!r})
loaders.from_nirspec({str(night["NIRSPEC"])!r})
gc.collect()
assert state() == before
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == done.stdout == ""


class TestFiles:
    def test_one_order_of_each(self, night):
        assert load_spectrum(night["IGRINS"], order=1).meta["m"] == 100
        assert load_spectrum(night["NIRSPEC"]).meta["m"] == 60
        with pytest.raises(ValueError, match=r"igrins\.fits holds 4 spectra: choose one, order=0 to 3"):
            load_spectrum(night["IGRINS"])

    def test_all_orders_of_each(self, night, tmp_path):
        assert [order.meta["m"] for order in load_orders([night["HPF"]])] == list(range(28))
        pair = load_orders([night["IGRINS"], write_igrins(tmp_path / "k.fits", "K")], extension="TGT_SPEC")
        assert [order.meta["m"] for order in pair] == [101, 100, 99, 98, 74, 73, 72, 71]
        assert [order.meta["m"] for order in load_orders([night["NIRSPEC"]])] == [60]
        path = tmp_path / "table.ecsv"
        QTable({"wavelength": np.linspace(5000, 5001, 9) * u.AA, "flux": np.ones(9)}).write(path)
        (spectrum,) = load_orders([path])
        np.testing.assert_array_equal(spectrum.flux.value, np.ones(9))

    def test_what_does_not_belong_together(self, night):
        with pytest.raises(ValueError, match="got 2 files of HPF, IGRINS"):
            load_orders([night["HPF"], night["IGRINS"]])
        with pytest.raises(ValueError, match=r"extension TGT_SPEC chooses .*, .*hpf\.fits is none"):
            load_orders([night["HPF"]], extension="TGT_SPEC")

    def test_format(self, tmp_path):
        path = tmp_path / "a.fits"
        Spectrum(spectral_axis=np.arange(5000.0, 5009.0) * u.AA, flux=np.ones(9) * u.Jy).write(
            path, format="tabular-fits"
        )
        (spectrum,) = load_orders([path], format="tabular-fits")
        np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), np.arange(5000.0, 5009.0))

    def test_a_header_without_wavelengths(self, tmp_path):
        """specutils counts pixels and calls them Å."""
        path = tmp_path / "counts.fits"
        fits.PrimaryHDU(np.ones(50)).writeto(path)
        with pytest.raises(ValueError, match=r"counts\.fits .*its header tells no wavelengths, CRVAL1 and CDELT1"):
            load_spectrum(path)
        header = fits.Header({"CRVAL1": 8000.0, "CDELT1": 0.05, "CRPIX1": 1.0})
        fits.PrimaryHDU(np.ones(50), header=header).writeto(path, overwrite=True)
        np.testing.assert_allclose(load_spectrum(path).spectral_axis.to_value("AA")[[0, -1]], [8000.0, 8002.45])


class TestTable:
    def test_of_hpf(self, night):
        table = order_table(sb.from_hpf(night["HPF"]))
        assert table["index"].tolist() == table["order"].tolist() == list(range(28))
        assert table["low"].unit == u.AA and (table["low"] < table["high"]).all()
        assert set(table["pixels"]) == {2048} and set(table["good"]) == {2040}  # noisy edges and the dead pixel are out
        np.testing.assert_allclose(table["snr"], 10.0)
        assert set(table["resolving_power"]) == {55_000}
        assert set(table["target"]) == {"test"} and table["time"].mask.all()
        assert (table["barycentric_velocity"] == -14.198 * u.km / u.s).all()

    def test_of_anything(self):
        axis = np.linspace(4000.0, 4010.0, 30) * u.AA
        dark = Spectrum(spectral_axis=axis, flux=np.full(30, np.nan) * u.Jy)
        plain = Spectrum(spectral_axis=axis, flux=np.ones(30) * u.Jy)
        table = order_table([plain, dark], medium="air", barycentric_velocity=3000 * u.m / u.s)
        assert table["good"].tolist() == [30, 0] and np.isnan(table["snr"]).all()
        assert table["low"][0].value == pytest.approx(4001.131, abs=2e-3)
        assert table["order"].mask.all() and table["target"].mask.all()
        assert (table["barycentric_velocity"].value == 3.0).all() and set(table["barycentric_source"]) == {"given"}
        lines = order_lines([plain, dark])
        assert lines[0] == "2 orders"
        assert lines[1:3] == [
            "target unknown, middle of the exposure unknown",
            "barycentric velocity unknown: no header",
        ]
        assert lines[-1].split() == ["1", "-", "4000.000", "4010.000", "30", "0", "-", "-"]

    def test_orders_that_differ(self, night, tmp_path):
        other = sb.from_igrins(write_igrins(tmp_path / "k.fits", "K", OBJECT="HD 2"))
        lines = order_lines([*sb.from_igrins(night["IGRINS"]), *other])
        assert lines[0] == "8 orders of IGRINS"
        assert lines[1].startswith("orders 0-3: target CPD-57 1131, middle of the exposure 2020-12-03T08:23:44 UTC")
        assert lines[3].startswith("orders 4-7: target HD 2, ")


def test_warnings_point_at_the_caller(tmp_path):
    path = write_igrins(tmp_path / "a.fits", "K", "earlier")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb.from_igrins(path)
    assert [note.filename for note in caught] == [__file__]


def test_copy_elsewhere_reads_alike(shared_data, tmp_path):
    """No word in the name or folder decides anything."""
    path = tmp_path / "Slope SDCK.fits"
    shutil.copy(shared_data / H, path)
    assert [s.meta["m"] for s in sb.from_igrins(path)] == list(range(125, 97, -1))
