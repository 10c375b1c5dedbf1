"""Line spread, saturation law, component and prior mean, each one class in this file, used through `fit`."""

import math

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.inference.linear.jacobian import linearize
from specutils_blase.inference.noise import Diagonal
from specutils_blase.inference.prior_mean import PriorMean
from specutils_blase.model import Component, DopplerShift, ForwardModel, GlobalParameter, LineSpread
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.parameters import FreeParameters
from specutils_blase.physics.saturation import SaturationLaw
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
POWER, SNR, RV = 50_000.0, 300.0, 7.0
PIXELS = np.linspace(10_000.0, 10_030.0, 400)


class GaussHermite(LineSpread):
    """A Gaussian times 1 + h3 H3 + h4 H4 (van der Marel & Franx 1993)."""

    def __init__(self, h3=0.0, h4=0.0):
        super().__init__()
        self.hermite = torch.nn.Parameter(torch.tensor([h3, h4], dtype=F64))

    def taps(self, ln_resolving_power, hermite):
        x = torch.arange(-self.n_half - 1, self.n_half + 2, dtype=F64) / self.sigma_cells(ln_resolving_power)
        third = (2.0 * x**3 - 3.0 * x) / math.sqrt(3.0)
        fourth = (4.0 * x**4 - 12.0 * x**2 + 3.0) / math.sqrt(24.0)
        taps = torch.exp(-0.5 * x.square()) * (1.0 + hermite[0] * third + hermite[1] * fourth)
        return taps / taps.sum()

    def global_parameters(self):
        own = GlobalParameter("hermite", "hermite", 0.1, 0.05, ("h3", "h4"), scope="order")
        return (*super().global_parameters(), own)


class Filled(SaturationLaw):
    """S = f + (1 - f) exp(-τ): light that no line absorbs; f = sigmoid(c)."""

    name, n_parameter = "filled", 1

    def __init__(self, filling):
        super().__init__()
        self.coefficients = torch.nn.Parameter(torch.tensor([math.log(filling / (1.0 - filling))], dtype=F64))

    def flux(self, tau, wavelength):
        dark = (1.0 - torch.sigmoid(self.coefficients)).to(tau.dtype)
        left = dark * torch.exp(-tau)
        return 1.0 - dark + left, -left

    def line_depth(self, flux_depth, wavelength):
        dark = 1.0 - torch.sigmoid(self.coefficients.detach())
        return -torch.log1p(-(flux_depth / dark).clamp(max=0.999))


class Fringes(Component):
    """An interference pattern of known period in ln λ: 1 + a cos + b sin, of no lines."""

    def __init__(self, period):
        super().__init__("fringes")
        self.period = period
        self.waves = torch.nn.Parameter(torch.zeros(2, dtype=F64))

    def evaluate(self, sampling, windows=None):
        phase = 2.0 * math.pi * sampling.wavelength.log() / self.period
        return None, 1.0 + self.waves[0] * phase.cos() + self.waves[1] * phase.sin()

    def global_parameters(self):
        return (GlobalParameter("fringes", "waves", 0.1, 0.05, ("fringes_cos", "fringes_sin")),)


class StrengthByDepth(PriorMean):
    """ln area of the lines, less its mean, times one slope: the template is another star's, a curve of growth off."""

    def __init__(self):
        super().__init__("star", ["slope"], [0.5])

    def design(self, emulator):
        ln_area = emulator.ln_area.detach().double()
        return {"ln_area": (ln_area - ln_area.mean()).unsqueeze(1)}


def lines(seed=0, n_line=24, law="log", steepness=1.0):
    rng = np.random.default_rng(seed)
    center = np.linspace(9_999.0, 10_031.0, n_line) + rng.uniform(-0.3, 0.3, n_line)
    ln_area = rng.uniform(np.log(0.02), np.log(0.12), n_line)
    area = np.exp(ln_area.mean() + steepness * (ln_area - ln_area.mean()))
    width = rng.uniform(0.05, 0.07, n_line)
    return LineEmulator(center, area, width, 0.4 * width, law=law, wavelength_range=(9_990.0, 10_040.0))


def order_model(star, **options):
    given = {"rv": RV, "vsini": 4.0, "limb_darkening": (0.4, 0.2), "resolving_power": POWER, "continuum_degree": 1}
    pixels = torch.as_tensor(PIXELS), torch.as_tensor(pixel_edges(PIXELS))
    return ForwardModel.for_order(*pixels, star=star, **(given | options))


def observed(model, seed=3):
    with torch.no_grad():
        flux = model().numpy() + np.random.default_rng(seed).standard_normal(PIXELS.size) / SNR
    noise = StdDevUncertainty(np.full(PIXELS.size, 1.0 / SNR))
    return Spectrum(flux=flux * u.one, spectral_axis=PIXELS * u.AA, uncertainty=noise)


def fitted(data, star, **options):
    given = {"star_lines": (), "vsini": 4.0, "rv": RV, "continuum": 1, "resolving_power": POWER, "progress": False}
    return sb.fit(data, star, **(given | options))


def cramer_rao(fit, names):
    """Errors of rows of the parameters by finite differences of the model to all that is free and global."""
    free = [str(row["name"]) for row in fit.parameters if row["free"]]
    known = fit.model.global_parameters().values()
    keys = tuple(dict.fromkeys(owned.parameter.name for owned in known if set(owned.rows) & set(free)))
    components = fit.model.components
    held = {name: torch.zeros(0, dtype=torch.long) for name in components}
    everything = FreeParameters(fit.model, dict.fromkeys(components, ()), held, keys)
    start = everything.read()
    columns = []
    for k in range(len(start)):
        step = torch.zeros_like(start)
        step[k] = 1e-4 * max(1.0, abs(float(start[k])))
        ends = []
        for side in (1.0, -1.0):
            everything.write(start + side * step)
            ends.append(everything.flux())
        columns.append((ends[0] - ends[1]) / (2.0 * float(step[k])))
    everything.write(start)
    jacobian = torch.stack(columns, dim=1).detach() * SNR
    prior = torch.zeros(len(start), dtype=F64)
    for key, place in everything.global_slices.items():
        prior[place] = everything.parameters[key].prior_sigma ** -2
    covariance = torch.linalg.inv(jacobian.T @ jacobian + torch.diag(prior))
    labels = [label for owned in everything.owned.values() for label in owned.rows]
    return [float(covariance[labels.index(name), labels.index(name)]) ** 0.5 for name in names]


def check(fit, truth, pull=3.5):
    """Within a few errors of the truth, and the errors those of finite differences."""
    assert fit.success
    for (name, value), sigma in zip(truth.items(), cramer_rao(fit, list(truth)), strict=True):
        assert abs(fit.value(name) - value) < pull * fit.error(name), name
        assert fit.error(name) == pytest.approx(sigma, rel=0.03), name


@pytest.mark.parametrize("h3, h4", [(0.0, 0.0), (0.08, -0.04)])
def test_derivatives_of_a_line_spread_from_outside(h3, h4):
    model = order_model(lines(), line_spread=GaussHermite(h3, h4))
    free = FreeParameters(model, {"star": ()}, {"star": torch.zeros(0).long()}, ("resolving_power", "hermite"))
    stated, start = linearize(free).dense, free.read()
    for k in range(len(start)):
        step = torch.zeros_like(start)
        step[k] = 1e-5
        ends = []
        for side in (1.0, -1.0):
            free.write(start + side * step)
            ends.append(free.flux().detach())
        difference = (ends[0] - ends[1]) / 2e-5
        assert float((stated[:, k] - difference).abs().max()) < 1e-4 * float(difference.abs().max()), k
    free.write(start)


def test_a_subclass_that_overrides_taps_has_derivatives_of_its_own():
    """Twice as wide as its resolving power says: ∂taps/∂ln R are those of its taps, not of the Gaussian's."""

    class Wide(sb.model.LineSpreadFunction):
        def taps(self, ln_resolving_power):
            return super().taps(ln_resolving_power - math.log(2.0))

    model = order_model(lines(), line_spread=Wide())
    spread = model.line_spread
    point = spread.ln_resolving_power.detach()
    difference = (spread.taps(point + 1e-5) - spread.taps(point - 1e-5)) / 2e-5
    stated = spread.tap_derivatives()[0]
    assert float((stated - difference).abs().max()) < 1e-4 * float(difference.abs().max())
    gaussian = sb.model.LineSpreadFunction(POWER, model.sampling.wavelength)
    gaussian.n_half = spread.n_half
    assert float((gaussian.tap_derivatives()[0] - difference).abs().max()) > 0.04 * float(difference.abs().max())


def test_line_spread_from_outside():
    data = observed(order_model(lines(), line_spread=GaussHermite(0.08, -0.04)))
    free = ("rv", "continuum", "resolving_power", "hermite")
    fit = fitted(data, lines(), line_spread=GaussHermite(), free=free)
    check(fit, {"h3": 0.08, "h4": -0.04})
    assert fit.quality.status == "good" and fit.settings["line_spread"] == "GaussHermite"
    gaussian = fitted(data, lines(), free=free[:-1])
    assert abs(gaussian.value("rv") - RV) > 5.0 * gaussian.error("rv")
    assert abs(fit.value("rv") - RV) < 3.0 * fit.error("rv")
    with pytest.raises(ValueError, match="a file holds no code"):
        fit.write("never.asdf")


def test_line_spread_of_each_order():
    """Each order has a copy, and finds its own."""
    halves = [slice(0, 200), slice(200, 400)]
    data = [
        observed(order_model(lines(), line_spread=GaussHermite(h3)))[part]
        for h3, part in zip((0.08, -0.06), halves, strict=True)
    ]
    fit = fitted(data, lines(), line_spread=GaussHermite(), free=("rv", "continuum", "hermite"))
    rows = fit.parameters[[name == "h3" for name in fit.parameters["name"]]]
    pulls = (np.asarray(rows["value"]) - [0.08, -0.06]) / np.asarray(rows["error"])
    assert np.abs(pulls).max() < 3.5 and np.asarray(rows["error"]).max() < 0.02


def test_saturation_law_from_outside():
    truth = 0.2
    data = observed(order_model(lines(law=Filled(truth))))
    fit = fitted(data, lines(law=Filled(0.1)), free=("rv", "continuum", "star_law"))
    check(fit, {"star_law_0": math.log(truth / (1.0 - truth))})


def test_component_without_lines_from_outside():
    period = 2e-4
    made = Fringes(period)
    with torch.no_grad():
        made.waves += torch.tensor([0.012, -0.02])
    data = observed(order_model(lines(), components=[made]))
    fit = fitted(data, lines(), components=[Fringes(period)], free=("rv", "continuum", "fringes"))
    check(fit, {"fringes_cos": 0.012, "fringes_sin": -0.02})
    assert fit.reduced_chi2 == pytest.approx(1.0, abs=0.2)


def test_a_companion():
    """Another star's light, at a velocity of its own: ratio and velocity found with the first star's."""
    other = lines(5)
    companion = Component("companion", other, doppler=DopplerShift(-31.0), shines=True, amount=0.25)
    data = observed(order_model(lines(), components=[companion]))
    start = Component("companion", lines(5), doppler=DopplerShift(-30.5), shines=True, amount=0.2, free_lines=())
    free = ("rv", "continuum", "companion_rv", "companion_amount")
    fit = fitted(data, lines(), components=[start], free=free)
    check(fit, {"rv": RV, "companion_rv": -31.0, "companion_amount": 0.25})
    assert set(fit.ledger["component"]) == {"star", "companion"}
    assert start.velocity == pytest.approx(-30.5)  # the fit takes copies


def test_prior_mean_from_outside():
    """A template whose strong lines are too weak and weak ones too strong: the slope says so, and the lines follow."""
    data = observed(order_model(lines(steepness=1.3)))
    options = {"star_lines": ("ln_area",), "free": ("rv", "continuum")}
    fit = fitted(data, lines(), prior_means=[StrengthByDepth()], **options)
    (told,) = fit.settings["prior_means"]
    assert told["component"] == "star" and told["names"] == ["slope"]
    assert abs(told["values"][0] - 0.3) < 3.5 * told["errors"][0]
    # As the scatter of Student's t about a straight line leaves it, all lines being known.
    spread = lines().ln_area.detach().numpy().std()
    expected = math.sqrt((4.0 + 3.0) / (4.0 + 1.0)) * 0.3 / (spread * math.sqrt(24))
    assert told["errors"][0] == pytest.approx(expected, rel=0.3)
    without = fitted(data, lines(), **options)
    moved, stayed = (np.nanmean(np.abs(one.ledger["delta_ln_area"])) for one in (fit, without))
    assert moved < 0.3 * stayed  # areas are the data's; what they are compared with has followed


def test_a_prior_mean_of_nothing_is_told():
    class Nowhere(StrengthByDepth):
        def __init__(self):
            PriorMean.__init__(self, "sky", ["slope"], [0.5])

    data = observed(order_model(lines()))
    with pytest.raises(ValueError, match="component 'sky', and the model has star"):
        fitted(data, lines(), star_lines=("ln_area",), prior_means=[Nowhere()])

    class Wrong(StrengthByDepth):
        def design(self, emulator):
            return {"ln_area": torch.ones(3, 1, dtype=F64)}

    with pytest.raises(ValueError, match=r"expected the design of ln_area as \(\d+, 1\)"):
        fitted(data, lines(), star_lines=("ln_area",), prior_means=[Wrong()])


def test_noise_in_place_of_the_datas():
    """Twice the noise: errors twice as large; pixels without weight do not count; pixels as the spectrum has them."""
    ascending = observed(order_model(lines()))
    noise = StdDevUncertainty(ascending.uncertainty.array[::-1])
    data = Spectrum(flux=ascending.flux[::-1], spectral_axis=ascending.spectral_axis[::-1], uncertainty=noise)
    plain = fitted(data, lines(), free=("rv", "continuum"))
    doubled = fitted(data, lines(), free=("rv", "continuum"), noise=Diagonal.of_sigma(np.full(PIXELS.size, 2.0 / SNR)))
    assert doubled.error("rv") == pytest.approx(2.0 * plain.error("rv"), rel=1e-3)
    sigma = np.full(PIXELS.size, 1.0 / SNR)
    sigma[:40] = np.inf
    cut = fitted(data, lines(), free=("rv", "continuum"), noise=Diagonal.of_sigma(sigma))
    assert int(cut.data.good.sum()) == 360 and not cut.data.good[-40:].any()
    with pytest.raises(ValueError, match="one value a pixel"):
        fitted(data, lines(), noise=Diagonal.of_sigma(sigma[:-1]))
    with pytest.raises(TypeError, match="must be a Diagonal"):
        fitted(data, lines(), noise=sigma)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"line_spread": GaussHermite}, "line_spread must be an instance"),
        ({"prior_means": ["slope"]}, "an element of prior_means must be an instance"),
        ({"components": [lines()]}, "components must be instances of specutils_blase.model.Component"),
    ],
)
def test_what_is_no_noun_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        fitted(observed(order_model(lines())), lines(), **options)


def test_components_of_one_name_are_refused():
    with pytest.raises(ValueError, match="components of different names"):
        fitted(observed(order_model(lines())), lines(), components=[Component("star", lines(2))])
    with pytest.raises(ValueError, match="free must be among"):
        fitted(observed(order_model(lines())), lines(), free=("fringes",))
