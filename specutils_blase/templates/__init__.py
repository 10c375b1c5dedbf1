"""Template spectra that work without a download: the default star and three templates from muler's wheel.

``arcturus`` is embedded in this package (``arcturus.npz``, see ``PROVENANCE.md`` beside it); ``telfit_hpf``, ``psg_hk``
and ``phoenix_10000K`` read the files that muler's wheel installs, without importing muler. Every function returns a new
`specutils.Spectrum`, or ``psg_hk_species`` one a molecule: vacuum wavelengths in Å, ascending, float64. Its ``meta``
records

=====================  ==============================================================================================
``source``             source of the numbers, in words
``medium``             always ``"vacuum"``
``resolving_power``    λ/FWHM at which the template itself is broadened; ``None`` if it is not (intrinsic line shapes)
``citation``           papers to cite when the template is used
=====================  ==============================================================================================

Reading and describing files lives here; cloning them does not.
"""

from importlib.util import find_spec
from pathlib import Path

import astropy.units as u
import numpy as np
from specutils import Spectrum
from specutils.utils.wcs_utils import air_to_vac

__all__ = ["arcturus", "phoenix_10000K", "psg_hk", "psg_hk_species", "telfit_hpf"]


def arcturus():
    """LTE synthetic spectrum of Arcturus (4286 K, log g 1.66), 8042-12843 Å, the embedded default star.

    Continuum-normalised flux without rotation, macroturbulence or instrumental broadening; 480,000 samples, 0.01 Å
    apart in air, moved to vacuum with Ciddor (1996). It has no hydrogen lines.

    Returns
    -------
    specutils.Spectrum
        Dimensionless flux, shape ``(480000,)``.

    Notes
    -----
    The file stores the flux as uint16 (flux × 60000), twice differenced modulo 2**16 and split into high and low bytes,
    which deflates to 388 kB; two cumulative sums restore the very same integers.

    Examples
    --------
    >>> import specutils_blase as sb
    >>> star = sb.templates.arcturus()
    >>> len(star.flux), star.spectral_axis[0].round(2)
    (480000, <SpectralAxis 8042.21 Angstrom>)
    """
    with np.load(Path(__file__).parent / "arcturus.npz", allow_pickle=False) as store:
        difference = store["difference_high"].astype(np.uint16) << 8 | store["difference_low"]
        scaled = np.cumsum(np.cumsum(difference, dtype=np.uint16), dtype=np.uint16)
        flux = scaled / float(store["scale"])
        air = float(store["wave0_air_A"]) + float(store["step_A"]) * np.arange(flux.size)
        source = str(store["meta"])
    # "Greisen2006" would be 4.5 km/s off, and the non-iterative inverse is not exact.
    vacuum = air_to_vac(air * u.AA, scheme="iteration", method="Ciddor1996").to_value(u.AA)
    return _spectrum(
        vacuum,
        flux,
        source=source,
        resolving_power=None,
        citation="PySME (Wehrhahn et al. 2023, A&A 671, A171); MARCS (Gustafsson et al. 2008, A&A 486, 951); "
        "linemake (Placco et al. 2021, RNAAS 5, 92)",
    )


def telfit_hpf():
    """TelFit telluric transmission (286 K, 50 % humidity) on the pixels of HPF, from muler's wheel.

    Already broadened to HPF's resolving power and sampled on HPF pixels, so the gaps between orders are in it.

    Returns
    -------
    specutils.Spectrum
        Transmission, dimensionless, shape ``(57344,)``, 8079-12786 Å.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        If muler is not installed, or installed without the file.

    Examples
    --------
    >>> import specutils_blase as sb
    >>> sky = sb.templates.telfit_hpf()
    >>> len(sky.flux), sky.meta["resolving_power"]
    (57344, 55000.0)
    """
    wavelength, transmission = _csv("telfit_HPFtemplate_temp286_hum050.csv")
    order = np.argsort(wavelength)
    return _spectrum(
        wavelength[order],
        transmission[order],
        source="TelFit, 286 K, 50 % humidity, on HPF pixels, from muler's wheel",
        resolving_power=55_000.0,
        citation="TelFit (Gullikson, Dodson-Robinson & Kraus 2014, AJ 148, 53); "
        "muler (Gully-Santiago et al. 2022, JOSS 7, 4302)",
    )


def psg_hk(molecule=None):
    """Planetary Spectrum Generator telluric transmission, 1.4-2.5 µm (H and K bands), from muler's wheel.

    Sampled at λ/Δλ = 100,000, one sample per resolution element.

    Parameters
    ----------
    molecule : str, optional
        Column of the file to return instead of the total transmission: ``"H2O"``, ``"CO2"``, ``"O3"``, ``"N2O"``,
        ``"CO"``, ``"CH4"``, ``"O2"``, ``"N2"``, ``"Rayleigh"`` or ``"CIA"``.

    Returns
    -------
    specutils.Spectrum
        Transmission, dimensionless, shape ``(57983,)``.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        If muler is not installed, or installed without the file.
    ValueError
        If the file has no column ``molecule``.

    Examples
    --------
    >>> import specutils_blase as sb
    >>> water = sb.templates.psg_hk("H2O")
    >>> float(water.flux.value.mean().round(2))
    0.55
    """
    return next(iter(_psg(["Total" if molecule is None else molecule]).values()))


def psg_hk_species():
    """The transmission of each molecule that has lines in `psg_hk`, to be cloned by `specutils_blase.clone_species`.

    Left out are N2, Rayleigh scattering and collision-induced absorption (CIA), which are smooth: a continuum takes
    them up.

    Returns
    -------
    dict of str to specutils.Spectrum
        H2O, CO2, O3, N2O, CO, CH4, O2; all on the axis of `psg_hk`.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        If muler is not installed, or installed without the file.

    Examples
    --------
    >>> import specutils_blase as sb
    >>> list(sb.templates.psg_hk_species())
    ['H2O', 'CO2', 'O3', 'N2O', 'CO', 'CH4', 'O2']
    """
    return _psg(["H2O", "CO2", "O3", "N2O", "CO", "CH4", "O2"])


def phoenix_10000K():
    """PHOENIX model of a 10,000 K star in the HPF band, native sampling, from muler's wheel.

    The flux is relative and not continuum-normalised: clone it with a continuum.

    Returns
    -------
    specutils.Spectrum
        Relative flux, dimensionless, shape ``(338649,)``, 8038-12849 Å.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        If muler is not installed, or installed without the file.

    Examples
    --------
    >>> import specutils_blase as sb
    >>> star = sb.templates.phoenix_10000K()
    >>> star.spectral_axis[0].round(2), star.meta["resolving_power"]
    (<SpectralAxis 8038.01 Angstrom>, None)
    """
    wavelength, flux = _csv("PHOENIX_10kK_hpf_template.csv")
    return _spectrum(
        wavelength,
        flux,
        source="PHOENIX 10,000 K, native sampling, from muler's wheel",
        resolving_power=None,
        citation="PHOENIX (Husser et al. 2013, A&A 553, A6); muler (Gully-Santiago et al. 2022, JOSS 7, 4302)",
    )


def _spectrum(wavelength, flux, **meta):
    """Vacuum spectrum from wavelengths in Å and dimensionless flux."""
    return Spectrum(
        spectral_axis=wavelength * u.AA, flux=flux * u.dimensionless_unscaled, meta={"medium": "vacuum", **meta}
    )


def _muler_file(name):
    """Path of a template inside muler's wheel; muler itself, which edits warning filters, is not imported."""
    spec = find_spec("muler")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "this template is read from muler's wheel, and muler is not installed: "
            "run `pip install muler`, or use specutils_blase.templates.arcturus(), which is embedded",
            name="muler",
        )
    path = Path(spec.origin).parent / "templates" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the template {name} in muler's wheel, found no file {path}: install muler 0.5.6 or newer"
        )
    return path


def _csv(name):
    """Two columns, wavelength [Å] and flux, of one of muler's CSV files."""
    return np.loadtxt(_muler_file(name), delimiter=",", skiprows=1, unpack=True)


def _psg(names):
    """Some columns of the PSG file as spectra, by name."""
    path = _muler_file("psg_trn_r100000_1.4_2.5_um.txt")
    columns = _psg_columns(path)
    for name in names:
        if name not in columns:
            raise ValueError(f"molecule={name!r} is not in the PSG file: choose one of {', '.join(columns)}")
    wavelength, *transmissions = np.loadtxt(
        path, usecols=(0, *(1 + columns.index(name) for name in names)), unpack=True
    )
    citation = (
        "Planetary Spectrum Generator (Villanueva et al. 2018, JQSRT 217, 86; 2022, Fundamentals of the PSG); "
        "muler (Gully-Santiago et al. 2022, JOSS 7, 4302)"
    )
    return {
        name: _spectrum(
            wavelength * 1e4,  # the file is in µm
            transmission,
            source=f"PSG, R = 100,000, column {name}, from muler's wheel",
            resolving_power=100_000.0,
            citation=citation,
        )
        for name, transmission in zip(names, transmissions, strict=True)
    }


def _psg_columns(path):
    """Names of the columns after the wavelength, from the header line of the PSG file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("# Wave/freq"):
                return line.split()[2:]
    raise ValueError(f"expected a header line '# Wave/freq Total ...' in {path}: install muler 0.5.6 or newer")
