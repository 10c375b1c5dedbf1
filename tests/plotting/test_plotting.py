"""Quick looks: the right panels with the right content, in the medium of the data, without pyplot."""

import sys
import types
from itertools import pairwise

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from matplotlib.figure import Figure
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.plotting.order import RESIDUAL_LIMIT_SIGMA, plot_clone, plot_fit
from specutils_blase.plotting.panels import label_panels, make_panels
from specutils_blase.simulate import simulate
from specutils_blase.spectra.wavelengths import air_wavelength

RV, N_PIXEL = 20.0, 240
PIXELS = np.linspace(10500.0, 10512.0, N_PIXEL)


def lines(centers, area, width=0.06):
    return {
        "center": np.array(centers),
        "area": np.full(len(centers), area),
        "sigma": np.full(len(centers), width),
        "gamma": np.full(len(centers), 0.5 * width),
    }


STAR = lines([10496.2, 10500.6, 10502.1, 10505.3, 10508.0, 10510.2, 10514.8], 0.12)
SKY = lines([10501.7, 10506.5, 10509.1], 0.08, 0.03)


def emulator(columns):
    return sb.LineEmulator(
        *(columns[name] for name in ("center", "area", "sigma", "gamma")), wavelength_range=(10480.0, 10532.0)
    )


def observation():
    return simulate(PIXELS, STAR, SKY, rv=RV, vsini=5.0, resolving_power=55_000, snr=100, seed=3)


def fitted(data, **options):
    options = {"rv": RV, "vsini": 5.0, "resolving_power": 55_000, "progress": False} | options
    return sb.fit(data, emulator(STAR), telluric=emulator(SKY), **options)


@pytest.fixture(scope="module")
def fit():
    return fitted(observation())


@pytest.fixture(scope="module")
def clone():
    wavelength = np.arange(10490.0, 10522.0, 0.02)
    template = simulate(wavelength, STAR, snr=None)
    return sb.clone(template, progress=False)


def line(panel, label):
    return next(artist for artist in panel.lines if artist.get_label() == label)


def ticks(panel, label):
    found = next(artist for artist in panel.collections if artist.get_label() == label)
    return np.array([segment[0, 0] for segment in found.get_segments()])


def test_panels_and_content(fit):
    figure = plot_fit(fit, rows=2)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6
    for row, (low, high) in enumerate([(10500.0, 10506.0), (10506.0, 10512.0)]):
        main, alone, residual = figure.axes[3 * row : 3 * row + 3]
        for panel in (main, alone, residual):
            assert panel.get_xlim() == (low, high)
        data = main.containers[0].lines[0]
        np.testing.assert_allclose(data.get_xdata(), PIXELS, rtol=1e-12)
        np.testing.assert_array_equal(data.get_ydata(), fit.data.flux)
        np.testing.assert_allclose(line(main, "model").get_ydata(), fit.model_spectrum.flux.value, rtol=1e-9)
        np.testing.assert_allclose(
            line(alone, "atmosphere").get_ydata(), fit.telluric_transmission.flux.value, rtol=1e-9
        )
        bottom, top = main.get_ylim()
        assert bottom < fit.data.flux.min() and fit.data.flux.max() < top
        assert residual.get_ylim() == (-RESIDUAL_LIMIT_SIGMA, RESIDUAL_LIMIT_SIGMA)
    expected = (fit.data.flux - fit.evaluate()["model"]) / fit.data.sigma
    np.testing.assert_allclose(figure.axes[2].lines[1].get_ydata(), expected, rtol=1e-9)


def test_ticks_stand_at_the_observed_lines(fit):
    figure = plot_fit(fit, rows=1)
    rv = fit.value("rv")
    for component, label, velocity in (("star", "star lines", rv), ("telluric", "atmosphere lines", 0.0)):
        rows = fit.ledger[(fit.ledger["component"] == component) & ~fit.ledger["edge"]]
        expected = rows["center"].to_value(u.AA) * (1.0 + velocity / 299792.458)
        found = ticks(figure.axes[0], label)
        np.testing.assert_allclose(np.sort(found), expected, rtol=1e-9)
        assert (found >= PIXELS[0]).all() and (found <= PIXELS[-1]).all()
    shallow = plot_fit(fit, rows=1, tick_depth=0.99)
    assert ticks(shallow.axes[0], "star lines").size == 0


def test_headline_tells_what_was_found(fit):
    title = plot_fit(fit)._suptitle.get_text()
    assert f"RV = {fit.value('rv'):.3f} ± {fit.error('rv'):.3f} km/s" in title
    assert "v sin i" in title and "reduced χ²" in title
    assert plot_fit(fit, title="mine")._suptitle.get_text() == "mine"
    held = fitted(observation(), free=("continuum",))
    assert "RV = 20 (held) km/s" in plot_fit(held)._suptitle.get_text()


def test_failure_is_in_the_title():
    with pytest.warns(RuntimeWarning, match="did not converge"):
        failed = fitted(observation(), rv=RV - 3.0, max_iterations=0)
    assert "quality: doubtful (converged" in plot_fit(failed)._suptitle.get_text()


def test_masked_pixels_are_shaded_and_not_drawn():
    spectrum = observation()
    flux = spectrum.flux.value.copy()
    flux[100:110] = 50.0
    mask = np.zeros(N_PIXEL, bool)
    mask[100:110] = True
    keep = np.r_[0:150, 170:N_PIXEL]  # and a gap, as muler's remove_nans leaves
    masked = Spectrum(
        spectral_axis=PIXELS[keep] * u.AA,
        flux=flux[keep] * u.one,
        uncertainty=StdDevUncertainty(spectrum.uncertainty.array[keep]),
        mask=mask[keep],
    )
    figure = plot_fit(fitted(masked), rows=1)
    main = figure.axes[0]
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in main.patches)
    pitch = PIXELS[1] - PIXELS[0]
    expected = [(PIXELS[100] - pitch / 2, PIXELS[109] + pitch / 2), (PIXELS[149] + pitch / 2, PIXELS[170] - pitch / 2)]
    np.testing.assert_allclose(spans, expected, atol=1e-6)
    assert main.get_ylim()[1] < 2.0
    assert np.isnan(main.containers[0].lines[0].get_ydata()[100:110]).all()
    model = line(main, "model")
    assert np.isnan(model.get_ydata()).sum() == 1  # broken at the gap
    assert "masked or no data" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_spikes_are_marked_at_the_edge_of_the_residuals():
    spectrum = observation()
    flux = spectrum.flux.value.copy()
    flux[40] += 0.3
    spiked = Spectrum(spectral_axis=PIXELS * u.AA, flux=flux * u.one, uncertainty=spectrum.uncertainty)
    with pytest.warns(sb.BlaseQualityWarning, match="χ²"):
        residual = plot_fit(fitted(spiked, jitter=False, robust=False), rows=1).axes[2]
    markers = next(artist for artist in residual.lines if artist.get_marker() == "^")
    np.testing.assert_allclose(markers.get_xdata(), PIXELS[40])
    assert abs(markers.get_ydata()[0]) < RESIDUAL_LIMIT_SIGMA


@pytest.mark.parametrize("unit", [u.AA, u.nm, u.um])
def test_axis_has_the_unit_of_the_data(fit, unit):
    data = observation().with_spectral_axis_unit(unit)
    figure = plot_fit(fitted(data), rows=1)
    np.testing.assert_allclose(figure.axes[0].get_xlim(), (PIXELS[[0, -1]] * u.AA).to_value(unit), rtol=1e-12)
    assert figure.axes[2].get_xlabel() == f"Vacuum wavelength [{unit.to_string('unicode')}]"


def test_frequencies_are_shown_as_wavelengths():
    figure = plot_fit(fitted(observation().with_spectral_axis_unit(u.THz)), rows=1)
    np.testing.assert_allclose(figure.axes[0].get_xlim(), PIXELS[[0, -1]], rtol=1e-9)


def test_air_is_on_the_label_and_on_the_axis():
    vacuum = observation()
    air = air_wavelength(vacuum.spectral_axis)
    data = Spectrum(spectral_axis=air, flux=vacuum.flux, uncertainty=vacuum.uncertainty)
    result = fitted(data, medium="air")
    figure = plot_fit(result, rows=1)
    assert figure.axes[2].get_xlabel() == "Air wavelength [Å]"
    np.testing.assert_allclose(figure.axes[0].get_xlim(), air.value[[0, -1]], rtol=1e-9)
    moved = air_wavelength(10506.5 * u.AA).value
    assert np.abs(ticks(figure.axes[0], "atmosphere lines") - moved).min() < 0.05


def test_unknown_noise_scales_residuals_by_their_scatter():
    vacuum = observation()
    figure = plot_fit(fitted(Spectrum(spectral_axis=vacuum.spectral_axis, flux=vacuum.flux)), rows=1)
    assert figure.axes[2].get_ylabel() == "Resid. / RMS"
    assert np.std(figure.axes[2].lines[1].get_ydata()) == pytest.approx(1.0)
    assert "χ²" not in figure._suptitle.get_text()


def test_unit_of_the_flux_is_shown():
    vacuum = observation()
    data = Spectrum(
        spectral_axis=vacuum.spectral_axis,
        flux=vacuum.flux.value * 1e-14 * u.Unit("erg / (s cm2 AA)"),
        uncertainty=StdDevUncertainty(vacuum.uncertainty.array * 1e-14),
    )
    figure = plot_fit(fitted(data), rows=1)
    assert "erg" in figure.axes[0].get_ylabel()
    bottom, top = figure.axes[0].get_ylim()
    assert 0 < top < 3e-14 and abs(bottom) < 3e-14


@pytest.mark.parametrize("component", ["star", "telluric"])
def test_one_component_alone(component):
    options = {"resolving_power": 55_000, "progress": False}
    if component == "star":
        data = simulate(PIXELS, STAR, rv=RV, vsini=5.0, resolving_power=55_000, snr=100, seed=3)
        result = sb.fit(data, emulator(STAR), rv=RV, vsini=5.0, **options)
    else:
        data = simulate(PIXELS, None, SKY, resolving_power=55_000, snr=100, seed=3)
        result = sb.fit(data, telluric=emulator(SKY), **options)
    figure = plot_fit(result)
    assert ("RV" in figure._suptitle.get_text()) == (component == "star")
    assert len(figure.axes[1].lines) == 1


@pytest.mark.parametrize("region", [(10502.0, 10504.0), (1050.2 * u.nm, 1050.4 * u.nm)])
def test_region(fit, region):
    figure = plot_fit(fit, region=region)
    assert len(figure.axes) == 3
    np.testing.assert_allclose(figure.axes[0].get_xlim(), (10502.0, 10504.0), rtol=1e-12)


@pytest.mark.parametrize("draw", ["fit", "clone"])
def test_bad_requests(draw, request):
    result = request.getfixturevalue(draw)
    function = {"fit": plot_fit, "clone": plot_clone}[draw]
    with pytest.raises(ValueError, match=r"holds 0 pixels of 10[45].*inside it"):
        function(result, region=(9000.0, 9100.0))
    for rows in (0, 1.5, True):
        with pytest.raises(ValueError, match="rows must be a positive number"):
            function(result, rows=rows)


def test_clone(clone):
    figure = plot_clone(clone, rows=1)
    main, residual = figure.axes
    np.testing.assert_array_equal(line(main, "template").get_ydata(), clone.template.flux.value)
    np.testing.assert_array_equal(line(main, "clone").get_ydata(), clone.model_spectrum.flux.value)
    difference = clone.template.flux.value - clone.model_spectrum.flux.value
    np.testing.assert_allclose(residual.lines[1].get_ydata(), 100 * difference)
    assert ticks(main, "lines").size == len(clone.ledger)
    assert residual.get_xlabel() == "Vacuum wavelength [Å]"
    assert f"{len(clone.ledger)} lines" in figure._suptitle.get_text()


def test_crowded_ticks_are_thinned(clone):
    depth = np.random.default_rng(0).uniform(0.1, 1.0, 500)
    ledger = QTable({"center": np.linspace(10491.0, 10521.0, 500) * u.AA, "depth": depth})
    names = ("template", "model_spectrum", "rms", "success", "quality")
    crowd = types.SimpleNamespace(ledger=ledger, **{name: getattr(clone, name) for name in names})
    drawn = ticks(plot_clone(crowd, rows=1).axes[0], "lines")
    deepest = ledger["center"].value[depth >= np.sort(depth)[-60]]
    np.testing.assert_array_equal(np.sort(drawn), deepest)


def test_pyplot_knows_nothing(fit, clone):
    for figure in (plot_fit(fit), plot_clone(clone), fit.plot()):
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    assert "matplotlib.pyplot" in sys.modules  # imported above: it had its chance


def test_a_given_figure_is_drawn_on(fit, tmp_path):
    mine = plt.figure(figsize=(8, 6))
    assert plot_fit(fit, figure=mine) is mine
    assert tuple(mine.get_size_inches()) == (8, 6)
    mine.savefig(tmp_path / "fit.pdf")
    assert (tmp_path / "fit.pdf").stat().st_size > 5000


def in_unit(factor, unit):
    vacuum = observation()
    sigma = StdDevUncertainty(vacuum.uncertainty.array * factor)
    return Spectrum(spectral_axis=vacuum.spectral_axis, flux=vacuum.flux.value * factor * unit, uncertainty=sigma)


LONG_TITLE = "GJ 699 order 5     RV = −113.123 ± 0.045 km/s     reduced χ² = 12.34     RMS = 1.23 %     NOT CONVERGED"
PICTURES = {
    "plain": lambda clone: plot_fit(fitted(observation()), rows=1),
    "large flux": lambda clone: plot_fit(fitted(in_unit(3.2e5, u.adu)), rows=1),
    "small flux": lambda clone: plot_fit(fitted(in_unit(1.3e-14, u.Unit("erg / (s cm2 AA)"))), rows=2),
    "few pixels": lambda clone: plot_fit(fitted(observation()), rows=2, region=(10502.0, 10502.9)),
    "few pixels in µm": lambda clone: plot_fit(
        fitted(observation().with_spectral_axis_unit(u.um)), region=(1.0502 * u.um, 1.0503 * u.um)
    ),
    "narrow figure": lambda clone: plot_fit(fitted(observation()), figure=plt.figure(figsize=(6, 5)), title=LONG_TITLE),
    "clone": lambda clone: plot_clone(clone, rows=1),
    "clone, few pixels": lambda clone: plot_clone(clone, region=(10505.0, 10506.0), rows=2),
}


def ordinate_labels(panel):
    """Words and extent of the tick labels that a panel shows beside its ordinate."""
    low, high = panel.get_ylim()
    shown = [text for text in panel.yaxis.get_ticklabels() if low <= text.get_position()[1] <= high]
    return [(text.get_text(), text.get_window_extent()) for text in shown if text.get_text()]


def test_labels_of_two_panels_do_not_touch():
    """A flux that ends just below zero, above components that end just above one."""
    figure, ((flux, components, _),) = make_panels(None, 1, (1.75, 0.85, 0.65))
    flux.set_ylim(-0.01, 1.3)
    components.set_ylim(0.0, 1.1)
    components.set_yticks([0.5, 1.0])
    label_panels([figure.axes], ("Flux", "Components", "Resid. [σ]"), "Vacuum wavelength [Å]")
    figure.draw_without_rendering()
    above, below = map(ordinate_labels, (flux, components))
    assert "0.6" in dict(above) and "1.0" in dict(below)
    assert all(one.y1 < other.y0 for _, one in below for _, other in above)


@pytest.mark.parametrize("name", PICTURES)
def test_no_label_is_cut(name, clone):
    figure = PICTURES[name](clone)
    figure.draw_without_rendering()
    plt.close("all")
    texts = [figure._suptitle]
    for panel in figure.axes:
        texts += [panel.xaxis.label, panel.yaxis.label]
        for place, (axis, limits) in enumerate(((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim()))):
            slack = 1e-9 * abs(limits[1])
            inside = (limits[0] - slack, limits[1] + slack)
            texts += [text for text in axis.get_ticklabels() if inside[0] <= text.get_position()[place] <= inside[1]]
        assert not panel.yaxis.offsetText.get_visible() or not panel.yaxis.offsetText.get_text()
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text.get_visible() and text.get_text()}
    assert len(boxes) > 8
    for words, box in boxes.items():
        assert 0 <= box.x0 and box.x1 <= figure.bbox.width, words
        assert 0 <= box.y0 and box.y1 <= figure.bbox.height, words
    ordinates = [panel.yaxis.label.get_window_extent() for panel in figure.axes]
    for above, below in pairwise(ordinates):
        assert below.y1 < above.y0


@pytest.mark.parametrize(
    ("factor", "unit", "label", "largest"),
    [
        (1.0, u.one, "Flux", 1.2),
        (900.0, u.Jy, "Flux [Jy]", 1100.0),
        (3.2e5, u.adu, "Flux [10⁵ adu]", 4.0),
        (2.0e-7, u.one, "Flux [10⁻⁷]", 3.0),
    ],
)
def test_power_of_ten_of_the_flux_is_in_its_label(factor, unit, label, largest):
    figure = plot_fit(fitted(in_unit(factor, unit)), rows=1)
    figure.draw_without_rendering()
    panel = figure.axes[0]
    assert panel.get_ylabel() == label
    shown = {text.get_position()[1]: float(text.get_text()) for text in panel.get_yticklabels() if text.get_text()}
    assert len(shown) > 2 and max(shown.values()) < largest
    power = {"Flux [10⁵ adu]": 1e5, "Flux [10⁻⁷]": 1e-7}.get(label, 1.0)
    for position, number in shown.items():
        assert number * power == pytest.approx(position)
