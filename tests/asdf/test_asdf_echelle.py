"""Models and fits of many orders through a file: one star and one sky, written once and shared again when read."""

import frozen
import numpy as np
import pytest
import torch
from test_asdf import assert_same_spectrum, assert_same_state, assert_same_table, assert_same_tree, through_file

import specutils_blase as sb
from specutils_blase.asdf.files import write
from specutils_blase.model.echelle import EchelleModel
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.spectra.data import pixel_edges
from specutils_blase.spectra.provenance import of_lines, of_template


def model(**options):
    """Two orders that overlap, away from where the constructors put them."""
    wavelengths = [torch.as_tensor(pixels) for pixels in frozen.ORDERS]
    seen = [{"star": torch.arange(7), "telluric": torch.arange(3)}, {"star": torch.arange(4, 10), "telluric": [2, 3]}]
    options = {"star": frozen.star(), "telluric": frozen.sky(), "lines": seen, "rv": -12.0, "vsini": 4.0} | options
    options |= {"lines": [{name: torch.as_tensor(each[name]) for name in each if options[name]} for each in seen]}
    built = EchelleModel.for_orders(
        wavelengths, [pixel_edges(each) for each in wavelengths], resolving_power=[55_000.0, 50_000.0], **options
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(0.97)
    return built


@pytest.fixture(scope="module")
def results():
    return frozen.results()


@pytest.fixture(scope="module")
def night(results):
    return results["echelle"]


@pytest.mark.parametrize("options", [{}, {"telluric": None}, {"star": None}], ids=["both", "star", "telluric"])
def test_model(options, tmp_path):
    original = model(**options)
    back = through_file(original, tmp_path)
    assert_same_state(original, back)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in original.named_parameters()]
    for one, other in zip(original(), back(), strict=True):
        assert torch.equal(one, other)
    assert [view.species for view in back.orders[1].components.values()] == [
        view.species for view in original.orders[1].components.values()
    ]


def test_what_orders_share_is_shared_again(tmp_path):
    """Gradients of both orders arrive at one star: the model goes on being fitted, by autograd or by the solver."""
    original = model()
    back = through_file(original, tmp_path)
    assert back.orders[0].doppler is back.orders[1].doppler
    assert back.orders[0].rotation.vsini is back.orders[1].rotation.vsini
    assert back.orders[0].rotation.limb_darkening is back.orders[1].rotation.limb_darkening
    for each in (original, back):
        sum(flux.square().sum() for flux in each()).backward()
    for one, other in zip(original.parameters(), back.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_star_and_sky_are_in_the_file_once(tmp_path):
    write(model(), tmp_path / "model.asdf")
    text = (tmp_path / "model.asdf").read_bytes()
    assert text.count(b"tags/line_emulator-1.0.0") == 2
    assert text.count(b"lines:") == 2


def test_orders_that_share_nothing_are_refused(tmp_path):
    apart = model()
    apart.orders[1].rotation.vsini = torch.nn.Parameter(torch.tensor(4.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected orders that share lines, velocity, rotation and limb darkening"):
        write(apart, tmp_path / "model.asdf")
    alone = model()
    alone.star = frozen.star()
    with pytest.raises(ValueError, match="got an order with its own"):
        write(alone, tmp_path / "model.asdf")
    assert list(tmp_path.iterdir()) == []


def test_fit_of_many_orders(night, tmp_path):
    back = through_file(night, tmp_path)
    assert len(back) == len(night) == 2
    for name in ("model_spectrum", "telluric_corrected", "star_spectrum", "telluric_transmission"):
        for one, other in zip(getattr(night, name), getattr(back, name), strict=True):
            assert_same_spectrum(one, other)
    assert_same_spectrum(night.star_template, back.star_template)
    assert_same_state(night.model, back.model)
    for name in ("parameters", "ledger", "orders"):
        assert_same_table(getattr(night, name), getattr(back, name))
    for name in ("covariance", "line_covariance", "history", "settings"):
        assert_same_tree(getattr(night, name), getattr(back, name))
    for name in ("reduced_chi2", "noise_scale", "success", "message", "rms"):
        assert getattr(back, name) == getattr(night, name)
    for one, other in zip(night.data, back.data, strict=True):
        for name in ("wavelength", "edges", "flux", "sigma", "good"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert_same_tree(night.frame[1].meta, back.frame[1].meta)
    assert back.frame[1].meta["m"] == 5
    assert repr(back) == repr(night) and "order 1 left out" in repr(back)
    assert torch.equal(night.draw(3).vectors, back.draw(3).vectors)


def test_one_order_of_a_read_fit(night, tmp_path):
    """Also alone in a file: its lines are then its own."""
    back = through_file(night, tmp_path).order(1)
    alone = through_file(back, tmp_path)
    assert type(alone.model.star) is LineEmulator
    assert_same_spectrum(night.order(1).model_spectrum, alone.model_spectrum)
    assert_same_table(night.order(1).parameters, alone.parameters)
    assert_same_table(night.order(1).orders, alone.orders)


@pytest.mark.filterwarnings("ignore:order 1 of the list is left out")
def test_fit_goes_on_from_a_file(night, tmp_path):
    """Emulators from a file are fitted like those from memory."""
    back = through_file(night, tmp_path)
    options = {"rv": night.value("rv"), "resolving_power": 55_000, "progress": False}
    options |= {"star_lines": ["ln_area"], "telluric_lines": ["ln_area"], "max_iterations": 60}
    expected = sb.fit(frozen.observed(), night.model.star, telluric=night.model.telluric, **options)
    again = sb.fit(frozen.observed(), back.model.star, telluric=back.model.telluric, **options)
    np.testing.assert_allclose(frozen.flux(again), frozen.flux(expected), rtol=1e-12)


def test_common_header_is_in_the_file_once(night, tmp_path):
    write(night, tmp_path / "night.asdf")
    text = (tmp_path / "night.asdf").read_bytes()
    assert text.count(b"OBJECT: a star") == 1
    assert text.count(b" m: 4\n") == text.count(b" m: 5\n") == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fit: fit.parameters.remove_column("order"), "expected parameters with the columns .* without order"),
        (lambda fit: fit.ledger.remove_column("orders"), "expected ledger with the columns .* without orders"),
        (lambda fit: fit.orders.remove_column("jitter"), "expected orders with the columns .* without jitter"),
    ],
)
def test_tables_without_their_columns_are_not_written(change, reason, night, tmp_path):
    """Nothing is written that could not be read."""
    copy = through_file(night, tmp_path)
    change(copy)
    with pytest.raises(ValueError, match=reason):
        copy.write(tmp_path / "broken.asdf")
    assert list(tmp_path.iterdir()) == []


# --- provenance -------------------------------------------------------------------------------------------------------


def test_provenance_of_every_kind_of_component(results, tmp_path):
    """The same digest in the file of a clone and in those of its fits; of a ledger, that of its lines."""
    clone, options = results["clone"], {"resolving_power": 55_000, "rv": -12.0, "progress": False, "max_iterations": 5}
    options |= {"star_lines": [], "telluric_lines": []}
    spectrum = frozen.observed()[-1]  # what was cloned
    table = clone.ledger["center", "area", "sigma", "gamma"]
    table.meta["source"] = "my list"
    expected = {
        "clone": of_template(clone.template),
        "template": of_template(clone.template),
        "table": of_lines(sb.LineEmulator.from_ledger(table), "my list"),
    }
    for name, telluric in (("clone", clone), ("template", clone.template), ("table", table)):
        fit = sb.fit(spectrum, telluric=telluric, **options)
        assert fit.settings["templates"]["telluric"] == expected[name]
        assert through_file(fit, tmp_path).settings["templates"]["telluric"] == expected[name]
    assert len(expected["clone"]["sha256"]) == 64 and expected["clone"]["medium"] == "vacuum"


def test_digest_tells_templates_apart(results):
    template = results["clone"].template
    assert of_template(template) == of_template(template * 1)
    assert of_template(template)["sha256"] != of_template(template * (1 + 1e-15))["sha256"]
    lines = frozen.star()
    moved = frozen.star()
    with torch.no_grad():
        moved.rv_offset[3] += 1e-9
    assert of_lines(lines, "")["sha256"] != of_lines(moved, "")["sha256"]
