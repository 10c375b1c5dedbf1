"""Every noun through a file and back: the same numbers, usable again, and readable by asdf alone."""

import subprocess
import sys

import asdf
import astropy.units as u
import frozen
import numpy as np
import pytest
import torch
from asdf.testing.helpers import roundtrip_object
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from numpy.testing import assert_array_equal
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.asdf.files import write
from specutils_blase.asdf.integration import MANIFESTS, ROOT, get_extensions, get_resource_mappings
from specutils_blase.fitting.pipeline import fit
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.physics.grids import Sampling
from specutils_blase.physics.saturation import Minnaert, Product, SaturationLaw
from specutils_blase.simulate import simulate
from specutils_blase.spectra.data import pixel_edges
from specutils_blase.spectra.provenance import of_template

RANGE = (10470.0, 10515.0)
PIXELS = np.linspace(10482.0, 10503.0, 300)


def lines(seed, n_line, **options):
    """An emulator of well separated lines, with shifted centres."""
    rng = np.random.default_rng(seed)
    center = np.linspace(10471.0, 10514.0, n_line) + rng.uniform(-0.5, 0.5, n_line)
    offset = rng.normal(0.0, 0.2, n_line)
    widths = rng.uniform(0.04, 0.08, (2, n_line))
    area = rng.uniform(0.01, 0.06, n_line)
    return LineEmulator(center, area, *widths, rv_offset=offset, wavelength_range=RANGE, **options)


def table(emulator):
    """The lines of an emulator as the simulator takes them."""
    names = ("center", "area", "sigma", "gamma", "rv_offset")
    return {name: getattr(emulator, name).detach().numpy() for name in names}


@pytest.fixture(scope="module")
def clone_result():
    return sb.clone(sb.templates.arcturus(), region=(10480, 10510), rms_target=0.03, progress=False)


@pytest.fixture(scope="module")
def observed():
    """A noisy order with a header and a bad pixel, descending in nm: nothing is trivial."""
    star, sky = table(lines(1, 14)), table(lines(2, 9))
    options = {"rv": -12.0, "vsini": 4.0, "resolving_power": 55_000.0, "continuum": (3.0, 0.2)}
    truth = simulate(PIXELS, star, sky, snr=300.0, **options)
    mask = np.zeros(PIXELS.size, dtype=bool)
    mask[40] = True
    header = fits.Header({"OBJECT": "a star", "EXPTIME": np.float32(30.0)})
    return Spectrum(
        spectral_axis=truth.spectral_axis[::-1].to(u.nm),
        flux=truth.flux.value[::-1] * u.ct,
        uncertainty=StdDevUncertainty(truth.uncertainty.array[::-1]),
        mask=mask,
        meta={"header": header, "m": 5, "offsets": np.arange(3.0)},
    )


@pytest.fixture(scope="module")
def fit_result(observed):
    law = Minnaert(RANGE, limiting_depth=0.9, degree=1)
    star, sky = lines(1, 14, law=law), lines(2, 9, law="linear")
    return fit(observed, star, telluric=sky, rv=-12.0, vsini=3.0, resolving_power=55_000, progress=False)


def through_file(result, tmp_path):
    path = tmp_path / "result.asdf"
    write(result, path)
    back = sb.read(path)
    assert type(back) is type(result)
    path.unlink()  # what was read needs its file no longer
    return back


def assert_same_tree(one, other):
    """Nested dictionaries and lists of equal contents; tuples may have become lists."""
    if isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key in one:
            assert_same_tree(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_tree(a, b)
    elif isinstance(one, np.ndarray):
        assert_array_equal(one, other)
    else:
        assert one == other or (one != one and other != other)


def assert_same_table(one, other):
    assert type(other) is type(one)
    assert other.colnames == one.colnames
    described = one.meta.get("columns", {})
    for name in one.colnames:
        a, b = one[name], other[name]
        assert getattr(a, "unit", None) == getattr(b, "unit", None)
        assert a.dtype == b.dtype and b.dtype.isnative
        assert_array_equal(np.asarray(a), np.asarray(b))
        assert b.info.description == described.get(name, a.info.description)
    # Descriptions travel in the meta, and stay there.
    assert_same_tree(one.meta, {key: other.meta[key] for key in other.meta if key != "columns" or key in one.meta})


def assert_same_spectrum(one, other):
    assert type(other) is Spectrum
    assert one.flux.unit == other.flux.unit and one.spectral_axis.unit == other.spectral_axis.unit
    assert_array_equal(one.flux.value, other.flux.value)
    assert_array_equal(one.spectral_axis.value, other.spectral_axis.value)
    assert type(one.uncertainty) is type(other.uncertainty)
    if one.uncertainty is not None:
        assert one.uncertainty.unit == other.uncertainty.unit
        assert_array_equal(one.uncertainty.array, other.uncertainty.array)
    assert (one.mask is None) == (other.mask is None)
    if one.mask is not None:
        assert_array_equal(one.mask, other.mask)
    assert_same_tree(one.meta, other.meta)


def assert_same_state(one, other):
    """Every parameter and buffer to the last bit, in the same precision."""
    before, after = one.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        assert torch.equal(value, after[name]), name


# --- LineEmulator and ForwardModel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["log", "linear", Product(guard=0.9), Minnaert(RANGE, limiting_depth=0.7, degree=2)])
def test_line_emulator(law, tmp_path):
    emulator = lines(3, 12, law=law, sign=[1, -1] * 6)
    back = through_file(emulator, tmp_path)
    assert_same_state(emulator, back)
    assert back.wavelength_range == emulator.wavelength_range and back.has_emission
    assert type(back.law) is type(emulator.law)
    assert getattr(back.law, "guard", None) == getattr(emulator.law, "guard", None)
    sampling = Sampling(torch.linspace(10475.0, 10510.0, 3000, dtype=torch.float64))
    assert torch.equal(back(sampling), emulator(sampling))
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_line_emulator_in_single_precision(tmp_path):
    emulator = lines(3, 12, law="minnaert").float()
    assert_same_state(emulator, through_file(emulator, tmp_path))


def test_line_emulator_without_lines_or_with_twins(tmp_path):
    empty = LineEmulator([], [], [], [], wavelength_range=RANGE)
    assert len(through_file(empty, tmp_path)) == 0
    twins = LineEmulator([10490.0] * 40, np.linspace(0.01, 0.4, 40), [0.05] * 40, [0.0] * 40, sign=[1, -1] * 20)
    assert_same_state(twins, through_file(twins, tmp_path))


def test_line_emulator_keeps_species(tmp_path):
    emulator = lines(3, 3)
    emulator.species = ["Fe I", "", "TiO"]
    assert through_file(emulator, tmp_path).species == ["Fe I", "", "TiO"]


def test_custom_law_is_refused(tmp_path):
    class Mine(SaturationLaw):
        name = "log"

        def flux(self, tau, wavelength):
            return torch.exp(-tau), -torch.exp(-tau)

    with pytest.raises(ValueError, match=r"own saturation laws .*Mine: a file holds no code"):
        write(lines(3, 3, law=Mine()), tmp_path / "mine.asdf")
    assert list(tmp_path.iterdir()) == []


def order_model(**options):
    wavelength = torch.as_tensor(PIXELS)
    return ForwardModel.for_order(wavelength, pixel_edges(wavelength), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"star": lines(1, 14), "rv": 1e-7, "vsini": 0.0, "continuum_degree": None},
        {"telluric": lines(2, 9), "resolving_power": [55_000.0, 0.1, -0.05], "continuum_degree": 0},
        {
            "star": lines(1, 14, law="minnaert"),
            "telluric": lines(2, 9, law="linear"),
            "rv": -31.4,
            "vsini": 7.0,
            "limb_darkening": (0.4, 0.2),
            "resolving_power": 50_000.0,
            "continuum_degree": 3,
        },
    ],
    ids=["star", "telluric", "both"],
)
def test_forward_model(options, tmp_path):
    model = order_model(**options)
    with torch.no_grad():  # away from where the constructors put it
        for parameter in model.parameters():
            parameter.mul_(0.97)
    back = through_file(model, tmp_path)
    assert_same_state(model, back)
    assert [name for name, _ in back.named_modules()] == [name for name, _ in model.named_modules()]
    assert torch.equal(back(), model())


def test_forward_model_on_its_own_sampling(tmp_path):
    wavelength = torch.as_tensor(np.sort(np.random.default_rng(0).uniform(10480, 10490, 500)))
    model = ForwardModel(Sampling(wavelength), star=lines(1, 14))
    assert torch.equal(through_file(model, tmp_path)(), model())


def test_custom_stage_is_refused(tmp_path):
    model = order_model(star=lines(1, 14))
    model.continuum = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"expected a Continuum .*Identity: a file holds no code"):
        write(model, tmp_path / "mine.asdf")


# --- CloneResult and FitResult ----------------------------------------------------------------------------------------


def test_clone_result(clone_result, tmp_path):
    back = through_file(clone_result, tmp_path)
    assert_same_state(clone_result.emulator, back.emulator)
    assert_same_table(clone_result.ledger, back.ledger)
    assert_same_spectrum(clone_result.template, back.template)
    assert_same_spectrum(clone_result.model_spectrum, back.model_spectrum)
    for name in ("rms", "success", "message"):
        assert getattr(back, name) == getattr(clone_result, name)
    assert_same_tree(clone_result.history, back.history)
    assert_same_tree(clone_result.settings, back.settings)
    sampling = Sampling(back.template.spectral_axis.to_value(u.AA))
    assert torch.equal(back.emulator(sampling), clone_result.emulator(sampling))


def test_fit_result(fit_result, tmp_path):
    back = through_file(fit_result, tmp_path)
    for name in ("model_spectrum", "telluric_corrected", "star_template", "star_spectrum", "telluric_transmission"):
        one, other = getattr(fit_result, name), getattr(back, name)
        assert one.flux.unit == other.flux.unit
        assert np.nanmax(np.abs(one.flux.value - other.flux.value)) < 1e-12
        assert_array_equal(one.spectral_axis.value, other.spectral_axis.value)
        assert_same_tree(one.meta, other.meta)
    assert_same_state(fit_result.model, back.model)
    assert_same_table(fit_result.parameters, back.parameters)
    assert_same_table(fit_result.ledger, back.ledger)
    assert_same_table(fit_result.orders, back.orders)
    for name in ("covariance", "line_covariance", "history", "settings"):
        assert_same_tree(getattr(fit_result, name), getattr(back, name))
    for name in ("reduced_chi2", "noise_scale", "success", "message", "rms"):
        assert getattr(back, name) == getattr(fit_result, name)
    for name in ("wavelength", "edges", "flux", "sigma", "good"):
        assert torch.equal(getattr(back.data, name), getattr(fit_result.data, name))
    assert torch.equal(fit_result.draw(3).vectors, back.draw(3).vectors)
    assert back.error("rv") == fit_result.error("rv") > 0
    assert back.frame.meta["header"]["OBJECT"] == "a star" and back.frame.medium == "vacuum"
    assert repr(back) == repr(fit_result)


def test_fit_goes_on_from_a_file(fit_result, observed, tmp_path):
    """Emulators from a file are fitted like those from memory."""
    back = through_file(fit_result, tmp_path)
    options = {"rv": fit_result.value("rv"), "resolving_power": 55_000, "progress": False}
    again = fit(observed, back.model.star, telluric=back.model.telluric, **options)
    expected = fit(observed, fit_result.model.star, telluric=fit_result.model.telluric, **options)
    assert np.abs(again.model_spectrum.flux.value - expected.model_spectrum.flux.value).max() < 1e-12


def test_writing_twice_says_the_same(fit_result, tmp_path):
    back = through_file(through_file(fit_result, tmp_path), tmp_path)
    assert torch.equal(back.model(), fit_result.model())
    assert_same_table(fit_result.ledger, back.ledger)


def test_results_inside_other_trees(clone_result):
    """Converters work in anybody's file, not only in ours."""
    back = roundtrip_object({"mine": [clone_result.emulator, clone_result]})
    assert_same_state(clone_result.emulator, back["mine"][0])
    assert back["mine"][1].rms == clone_result.rms


# --- entry points and plain asdf --------------------------------------------------------------------------------------


def test_manifest_and_schemas_fit_together():
    schemas, manifests = get_resource_mappings()
    assert {f"{ROOT}/manifests/{name}" for name in MANIFESTS} == set(manifests)
    for extension in get_extensions():
        for definition in extension.tags:
            assert definition.schema_uris and set(definition.schema_uris) <= set(schemas)
            assert any(asdf.util.uri_match(tag, definition.tag_uri) for c in extension.converters for tag in c.tags)


def python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


NOT_INSTALLED = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("specutils_blase", "torch", "specutils", "muler"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import asdf, numpy as np
"""
"""A process in which only asdf and asdf-astropy can be imported; entry points of ours fail there."""


def test_plain_asdf_shows_ledger_and_arrays(fit_result, clone_result, tmp_path):
    """Where this package is not installed, a file still opens and shows what counts."""
    fit_result.write(tmp_path / "fit.asdf")
    clone_result.write(tmp_path / "clone.asdf", compression="zlib")
    code = (
        NOT_INSTALLED
        + """
files = [asdf.open(path) for path in sys.argv[1:]]
fit, clone = (file["result"] for file in files)
ledger, data, spectra = fit["ledger"], fit["data"], fit["spectra"]
meaning = ledger.meta["columns"]["area"]
print(isinstance(fit, dict), type(ledger).__name__, len(ledger), ledger["center"].unit, meaning)
chi = (np.array(data["flux"]) - np.array(spectra["model"])) / np.array(data["sigma"])
print(f"{np.std(chi[np.array(data['good'])]):.6f}", data["wavelength_unit"], data["flux_unit"])
print(fit["parameters"]["name"][0], np.shape(fit["covariance"]), fit["model"]["rv"], fit["frame"]["medium"])
print(np.array(fit["model"]["star"]["ln_area"]).size, fit["written"]["packages"]["torch"], fit["message"])
print(len(clone["ledger"]), clone["template"]["spectral_axis"]["unit"], clone["provenance"]["sha256"])
print(np.array(clone["template"]["flux"]["value"]).size)
"""
    )
    printed = python(code, tmp_path / "fit.asdf", tmp_path / "clone.asdf").splitlines()
    n_line = len(fit_result.ledger)
    area = fit_result.ledger.meta["columns"]["area"]
    assert printed[0].split(maxsplit=4) == ["True", "QTable", str(n_line), "Angstrom", area]
    data = fit_result.data
    chi = ((data.flux - fit_result.model()) / data.sigma)[data.good].detach().numpy()
    assert printed[1] == f"{np.std(chi):.6f} Angstrom ct"
    rv, n_free = fit_result.value("rv"), int(fit_result.parameters["free"].sum())
    assert printed[2] == f"rv {(n_free, n_free)} {rv} vacuum"
    assert printed[3] == f"{len(fit_result.model.star)} {torch.__version__} {fit_result.message}"
    digest = of_template(clone_result.template)["sha256"]
    assert printed[4] == f"{len(clone_result.ledger)} Angstrom {digest}"
    assert printed[5] == str(len(clone_result.template.flux))


def test_plain_asdf_prints_the_ledger_of_many_orders():
    path = frozen.path("echelle")
    if not path.exists():
        pytest.skip(f"{path.name} did not come with these tests")
    code = (
        NOT_INSTALLED
        + """
night = asdf.open(sys.argv[1])["result"]
night["ledger"]["component", "species", "center", "equivalent_width", "orders"].pprint(max_lines=-1, max_width=-1)
for data, spectra in zip(night["data"], night["spectra"]):
    print(np.shape(data["flux"]), np.shape(spectra["model"]), np.array(spectra["telluric"]).min() < 1)
print(night["orders"]["fitted"].tolist(), night["model"]["rv"], night["provenance"]["star"]["source"])
"""
    )
    night, printed = sb.read(path), python(code, path).splitlines()
    assert [name in printed[0] for name in ("component", "species", "center", "equivalent_width", "orders")] == [
        True
    ] * 5
    assert printed[1].split() == ["Angstrom", "Angstrom"]
    assert len(printed) == 3 + len(night.ledger) + len(night) + 1
    assert printed[3].split()[:3] == ["star", "Fe", "I"]
    assert printed[-2] == "(40,) (40,) True"
    assert printed[-1] == f"[True, False, True] {night.value('rv')} LineEmulator"
