"""Molecules of tellurics that were cloned as one: against clones that know theirs, and amounts that are injected."""

import logging

import astropy.units as u
import numpy as np
import pytest
import torch

import specutils_blase as sb
from specutils_blase import simulate
from specutils_blase.fitting.prior_means import telluric_species
from specutils_blase.fitting.prior_means.telluric_species import by_place, species_at
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.emulator import LineEmulator

pytest.importorskip("muler", reason="the templates are in muler's wheel")

LOW, HIGH = 22_400.0, 22_560.0
AMOUNTS = {"H2O": 1.8, "CH4": 0.8}


@pytest.fixture(scope="module")
def sky():
    """PSG's transmission around 2.25 µm as one clone: methane among water."""
    return sb.clone(
        sb.templates.psg_hk(), region=((LOW - 8.0) * u.AA, (HIGH + 8.0) * u.AA), prominence=0.01, rms_target=0.01,
        progress=False,
    )  # fmt: skip


def flat(centers):
    count = np.ones(len(centers))
    return LineEmulator(centers, 0.1 * count, 0.05 * count, 0.02 * count)


@pytest.mark.filterwarnings("ignore::specutils_blase.BlaseQualityWarning")  # a few steps are enough to know them
def test_lines_have_the_species_of_a_clone_that_knows_it():
    """Clones of each molecule by itself, in H and in K; a line beside a stronger one of another counts little."""
    right = total = 0.0
    for low, high in ((16_300.0, 16_380.0), (20_050.0, 20_100.0), (LOW, HIGH)):
        alone = {
            name: template for name, template in sb.templates.psg_hk_species().items() if name in ("H2O", "CO2", "CH4")
        }
        known = sb.clone_species(
            alone, region=(low * u.AA, high * u.AA), prominence=0.02, in_rounds=False, max_iterations=5, progress=False
        )
        assert len(set(known.emulator.species)) > 1
        found = species_at(known.emulator.shifted_center.detach().numpy())
        absorbed = np.asarray(known.ledger["equivalent_width"])
        right += absorbed[found == np.array(known.emulator.species)].sum()
        total += absorbed.sum()
        assert len(found) > 30
    assert right > 0.9 * total


def test_bands_of_oxygen_and_beyond_the_tables():
    assert species_at([7610.0, 6875.0, 12_690.0]).tolist() == ["O2"] * 3
    assert species_at([7280.0, 9350.0, 11_300.0]).tolist() == ["H2O"] * 3
    assert species_at([26_000.0, 33_000.0]).tolist() == ["", ""]


def test_one_molecule_has_one_factor():
    same = flat(np.linspace(9300.0, 9400.0, 40))
    assert by_place(same) is same and same.species is None
    few = flat([*np.linspace(12_500.0, 12_540.0, 30), 12_551.0, 12_552.0])  # two lines are no molecule
    assert by_place(few) is few


def test_a_clone_that_knows_its_species_stays(sky):
    known = sky.emulator.subset(torch.arange(len(sky.emulator)))
    known.species = ["N2"] * len(known)
    assert by_place(known) is known


def test_a_ledger_of_a_clone_tells_as_much(sky):
    """Its column of species is there, and empty."""
    lines = LineEmulator.from_ledger(sky.ledger)
    assert not any(lines.species)
    assert by_place(lines).species == by_place(sky.emulator).species


def test_the_users_emulator_stays_as_it_is(sky):
    found = by_place(sky.emulator)
    assert sky.emulator.species is None and set(found.species) >= {"H2O", "CH4"}
    torch.testing.assert_close(found.line_parameters(), sky.emulator.line_parameters(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.center, sky.emulator.center, rtol=0, atol=0)


def test_without_muler_only_oxygen_and_water_are_known(monkeypatch):
    def missing():
        raise ModuleNotFoundError("muler")

    telluric_species._table.cache_clear()
    monkeypatch.setattr(telluric_species, "psg_hk_species", missing)
    assert species_at([7610.0, 9350.0, 22_500.0]).tolist() == ["O2", "H2O", ""]
    telluric_species._table.cache_clear()


def test_amounts_of_water_and_methane_are_found_apart(sky, caplog):
    """A wet night: 1.8 times the water and 0.8 times the methane, in a template that was cloned as one."""
    pixels = np.arange(LOW, HIGH, 0.16)
    truth = sky.ledger["center", "area", "sigma", "gamma"].copy()
    species = species_at(np.asarray(truth["center"]))
    truth["area"] *= np.array([AMOUNTS.get(name, 1.0) for name in species])
    data = simulate.simulate(pixels, None, truth, resolving_power=45_000, snr=200, seed=4)
    with caplog.at_level(logging.INFO, logger="specutils_blase"):
        fit = sb.fit(data, telluric=sky, resolving_power=45_000, progress=False)
    assert "telluric lines by molecule" in caplog.text
    scale = fit.settings["telluric_scale"]
    rows = fit.ledger[fit.ledger["component"] == "telluric"]
    for name, amount in AMOUNTS.items():
        assert abs(scale["factors"][name] - amount) < 3.0 * scale["errors"][name]
        # Of n well-known lines the width of the prior over √n, where Student's t tells 5/7 of a Gaussian; else more.
        least = LinePriors().ln_area * np.sqrt(7.0 / 5.0 / np.sum(rows["free"] & (rows["species"] == name)))
        assert 0.98 * least < scale["errors"][name] / scale["factors"][name] < 1.3 * least
    assert set(rows["species"]) >= {"H2O", "CH4"}
    change = np.asarray(rows["delta_ln_area"])[np.asarray(rows["snr"]) > 20]
    assert np.abs(change).max() < 1.0
