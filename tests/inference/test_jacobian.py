"""Analytic derivatives against autograd through the modules, and the layout of the parameter vector."""

import pytest
import torch
from model_cases import MODELS, everything, order, sky, star

from specutils_blase.inference.linear import windows as jacobian_windows
from specutils_blase.inference.linear.jacobian import linearize
from specutils_blase.inference.linear.windows import Cut
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.parameters import KINDS, FreeParameters

F64 = torch.float64


def random_subset(model):
    """Some kinds, some lines, some globals."""
    lines = {name: torch.arange(1, len(component), 3) for name, component in model.components.items()}
    kinds = {"star": ("ln_area", "rv_offset"), "telluric": ("ln_gamma",)}
    return FreeParameters(model, kinds, lines, ("rv", "vsini", "continuum", "star_law"))


def exactly(monkeypatch):
    """Steer with everything there is: no wing left out, no window cut."""
    monkeypatch.setattr(jacobian_windows, "STEERING", Cut(1e-2, 1e-8, 10**6))


def dense(free):
    """The structured Jacobian as one matrix, (n_row, n_parameter), and the flux."""
    structured = linearize(free)
    matrix = torch.zeros(len(structured.flux), len(free), dtype=F64)
    for block in structured.blocks:
        for columns, start, values in zip(block.columns, block.start.tolist(), block.values, strict=True):
            rows = torch.arange(values.shape[-1]) + start
            inside = (rows >= 0) & (rows < len(matrix))
            assert (values[:, ~inside] == 0).all()
            matrix[rows[inside].unsqueeze(1), columns] += values[:, inside].T
    matrix[:, structured.dense_columns] += structured.dense
    return matrix, structured.flux


def autograd_products(free, projections):
    """Projections of the Jacobian by autograd through the modules, in the order of the vector, (n_projection, n)."""
    model, rows = free.model, []
    flux = model()
    for projection in projections:
        model.zero_grad()
        (flux * projection).sum().backward(retain_graph=True)
        parts = []
        for name, component in model.components.items():
            gradients = [getattr(component, kind).grad for kind in free.kinds[name]]
            if gradients:
                parts.append(torch.stack(gradients, dim=-1)[free.lines[name]].reshape(-1))
        for name, tensor in free._tensors.items():
            gradient = tensor.grad.reshape(-1)
            parts.append(gradient / (2.0 * tensor.detach()) if name == "vsini" else gradient)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def relative_errors(free):
    """Error of each column relative to the column, both from random projections."""
    matrix, flux = dense(free)
    projections = torch.randn(8, len(flux), dtype=F64, generator=torch.Generator().manual_seed(3))
    truth = autograd_products(free, projections)
    error = (projections @ matrix - truth).square().mean(0).sqrt()
    return error, truth.square().mean(0).sqrt()


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_equals_autograd(name, monkeypatch):
    """With nothing cut, every column of every free parameter: 3e-5 of the column."""
    exactly(monkeypatch)
    free = everything(MODELS[name]())
    error, size = relative_errors(free)
    with torch.no_grad():
        torch.testing.assert_close(linearize(free).flux, free.model(), rtol=0, atol=0)
    floor = 1e-7 * len(free.model()) ** 0.5  # of opacity neglected in every pixel
    bad = error > 3e-5 * size + floor
    for label, columns in free.global_slices.items():
        assert (error[columns] <= 1e-4 * size[columns]).all(), (label, error[columns] / size[columns])
        bad[columns] = False
    assert not bad.any(), (bad.nonzero().squeeze(1), (error / size)[bad])


@pytest.mark.parametrize("name", ["star and sky", "clone", "Minnaert"])
def test_cut_as_it_steers(name):
    """As the solver uses it, wings below 3e-4 left out: lines within a few per cent (ln γ 30 %), globals exact."""
    free = everything(MODELS[name]())
    error, size = relative_errors(free)
    local = torch.arange(free.n_line_parameter)
    kind = local % len(KINDS)
    center = torch.cat([component.center for component in free.model.components.values()])
    inside = ((center > 10_000.2) & (center < 10_012.8)).repeat_interleave(len(KINDS))
    # Damping is mostly wing, of which weak lines lose most.
    for index, limit in ((0, 0.05), (1, 0.05), (2, 0.3), (3, 0.05)):
        chosen = (kind == index) & inside
        assert chosen.sum() > 15
        assert (error[local][chosen] < limit * size[local][chosen]).all()
    for columns in free.global_slices.values():
        assert (error[columns] <= 1e-4 * size[columns]).all()


@pytest.mark.parametrize("choose", [everything, random_subset])
def test_pull_is_exact(choose):
    """Jᵀ × a change of the flux, in the order of the vector, whatever is cut for steering."""
    free = choose(order(star(law="minnaert"), sky()))
    cotangent = torch.randn(260, dtype=F64, generator=torch.Generator().manual_seed(6))
    found, truth = free.evaluate()[2](cotangent), autograd_products(free, cotangent.unsqueeze(0))[0]
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-14)
    assert not found.requires_grad


def test_broad_lines_become_dense_columns(monkeypatch):
    """A line whose core fills a window touches everything; the numbers are the same."""
    exactly(monkeypatch)
    broad = LineEmulator([10_003.0, 10_006.0, 10_009.0], [0.1, 9.0, 0.05], [0.06, 1.0, 0.05], [0.03, 1.5, 0.02])
    model = order(broad, sky())
    free = everything(model)
    whole, _ = dense(free)
    monkeypatch.setattr(jacobian_windows, "STEERING", Cut(1e-2, 1e-4, 600))
    structured = linearize(free)
    columns = set(structured.dense_columns.tolist())
    assert set(range(4, 8)) <= columns and not set(range(4)) & columns and not set(range(8, 12)) & columns
    matrix, _ = dense(free)
    torch.testing.assert_close(matrix[:, 4:8], whole[:, 4:8], rtol=0, atol=1e-12)


@pytest.mark.parametrize("center", [10_000.4, 10_006.0, 10_012.6])
def test_wide_windows_are_cut_about_the_line(center, monkeypatch):
    """A narrow strong line keeps its core and the inner wing, and loses only what is beyond, near the ends as well."""
    exactly(monkeypatch)
    free = everything(order(LineEmulator([center], [3.0], [0.05], [0.05]), None, rv=0.0))
    whole, _ = dense(free)
    monkeypatch.setattr(jacobian_windows, "STEERING", Cut(1e-2, 1e-8, 240))
    matrix, _ = dense(free)
    lost = (matrix - whole)[:, 0].abs()
    pixels = 10_000.0 + 0.05 * torch.arange(260)
    near = (pixels - center).abs() < 0.8  # 120 nodes are 1.5 Å, less what the kernels reach
    assert lost[near].max() < 1e-12
    assert (matrix[:, 0] != 0).float().mean() < 0.5
    assert 0 < lost.max() < 0.12 * whole[:, 0].abs().max()


def test_windows_at_and_beyond_the_ends(monkeypatch):
    """Lines centred outside the pixels, even outside the grid, that reach in."""
    exactly(monkeypatch)
    edge = LineEmulator([9_998.5, 9_999.6, 10_000.0, 10_012.96, 10_013.4, 10_014.5], [0.3] * 6, [0.06] * 6, [0.05] * 6)
    free = everything(order(edge, None, rv=0.0))
    error, size = relative_errors(free)
    assert (size[:24:4] > 1e-3).all()
    assert (error[:24] < 1e-4 * size[:24] + 1e-6).all()


def test_single_precision(dtype):
    """The Jacobian of a float32 model is that of the float64 one, to float32."""
    free = everything(order(star(), sky()).to(dtype))
    exact = everything(order(star(), sky()))
    (matrix, flux), (truth, _) = dense(free), dense(exact)
    assert flux.dtype == dtype
    error = (matrix - truth).norm(dim=0)
    assert (error <= (2e-3 if dtype == torch.float32 else 1e-12) * truth.norm(dim=0) + 1e-6).all()


# --- parameter vector -------------------------------------------------------------------------------------------------


def test_subset_of_columns(monkeypatch):
    exactly(monkeypatch)
    model = order(star(law="minnaert"), sky())
    free, whole = random_subset(model), everything(model)
    part, full = dense(free)[0], dense(whole)[0]
    picked = torch.cat(
        [
            whole.columns("star")[free.lines["star"]][:, [0, 3]].reshape(-1),
            whole.columns("telluric")[free.lines["telluric"]][:, [2]].reshape(-1),
            *[
                torch.arange(whole.global_slices[name].start, whole.global_slices[name].stop)
                for name in free.global_slices
            ],
        ]
    )
    assert len(picked) == len(free)
    torch.testing.assert_close(part, full[:, picked], rtol=0, atol=1e-12)


@pytest.mark.parametrize("choose", [everything, random_subset])
def test_write_then_read_is_the_identity(choose):
    free = choose(order(star(law="minnaert"), sky()))
    vector = free.read() + 0.01 * torch.randn(len(free), dtype=F64, generator=torch.Generator().manual_seed(4))
    free.write(vector)
    torch.testing.assert_close(free.read(), vector, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("choose", [everything, random_subset])
def test_read_then_write_changes_nothing(choose):
    model = order(star(law="minnaert"), sky())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    free = choose(model)
    free.write(free.read())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-15, atol=0)


def test_held_parameters_do_not_move():
    """Only what is declared free: line by line, kind by kind, and every other tensor of the model."""
    model = order(star(law="minnaert"), sky())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    free = random_subset(model)
    free.write(free.read() + 1.0)
    moved = {"star": ("ln_area", "rv_offset"), "telluric": ("ln_gamma",)}
    motion = {"parts.star.doppler.rv", "parts.star.rotation.vsini", "parts.star.emulator.law.coefficients"}
    scalars = motion | {"continuum.coefficients"}
    for name, tensor in model.state_dict().items():
        component, _, kind = name.removeprefix("parts.").replace(".emulator", "").partition(".")
        if component in moved and kind in KINDS:
            changed = torch.zeros(len(tensor), dtype=torch.bool)
            if kind in moved[component]:
                changed[free.lines[component]] = True
            torch.testing.assert_close(tensor[changed], before[name][changed] + 1.0, rtol=0, atol=1e-12)
            assert torch.equal(tensor[~changed], before[name][~changed]), name
        elif name in scalars:
            assert (tensor != before[name]).all(), name
        else:
            assert torch.equal(tensor, before[name]), name


def test_rotation_stands_as_its_square():
    free = FreeParameters(order(star(), None), {"star": ()}, {"star": torch.arange(0)}, ("rv", "vsini"))
    torch.testing.assert_close(free.read(), torch.tensor([-7.0, 36.0], dtype=F64))
    free.write(torch.tensor([3.0, 49.0]))
    assert float(free.model.rotation.vsini.detach()) == pytest.approx(7.0)
    free.write(torch.tensor([3.0, -5.0]))  # a step beyond nought is none
    assert float(free.model.rotation.vsini.detach()) == 0.0


def test_layout():
    """Lines of the star, line by line, then of the sky, then the globals in their order."""
    model = order(star(), sky())
    free = everything(model)
    assert free.columns("star").tolist()[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert int(free.columns("telluric")[0, 0]) == 160
    assert free.n_line_parameter == 240
    assert list(free.global_slices) == ["rv", "vsini", "limb_darkening", "resolving_power", "continuum"]
    assert len(free) == 240 + 1 + 1 + 2 + 1 + 3 == len(free.read())
    vector = free.read()
    torch.testing.assert_close(vector[:160].reshape(40, 4), model.star.line_parameters().detach())
    assert float(vector[free.global_slices["rv"]]) == -7.0
    with pytest.raises(KeyError):
        free.columns("moon")


def test_what_is_not_there_cannot_be_free():
    model = order(None, sky())
    with pytest.raises(ValueError, match="rv cannot be free: the model has no such stage"):
        FreeParameters(model, {"telluric": KINDS}, {"telluric": torch.arange(20)}, ("rv",))
    free = FreeParameters(model, {"telluric": ()}, {"telluric": torch.arange(20)}, ("continuum", "telluric_law"))
    assert list(free.global_slices) == ["continuum"]  # the exponential law has no parameters


def test_nothing_free():
    free = FreeParameters(order(None, sky()), {"telluric": ()}, {"telluric": torch.arange(20)}, ())
    structured = linearize(free)
    assert len(free) == 0 and structured.blocks == [] and structured.dense.shape == (260, 0)
