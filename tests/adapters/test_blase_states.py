"""States saved by blasé: its own formulas, written out here, against the emulator read from its files."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import voigt_profile

import specutils_blase as sb
from specutils_blase.adapters.blase import read_blase_parameters
from specutils_blase.physics.grids import SPEED_OF_LIGHT, Sampling

LINES = {
    "center": np.array([10001.0, 10003.0, 10003.2, 10006.0]),
    "area": np.array([0.05, 0.1, 0.01, 0.1]),
    "sigma": np.array([0.05, 0.08, 0.03, 0.2]),
    "gamma": np.array([0.06, 0.02, 0.05, 0.05]),
}
GRID = np.arange(9995.0, 10012.0, 0.01)


def state_of(lines, velocity=0.0, **more):
    """State dict of blasé's SparseLinearEmulator or SparseLogEmulator."""
    tensors = {"lam_centers": lines["center"]}
    names = {"amplitudes": "area", "sigma_widths": "sigma", "gamma_widths": "gamma"}
    tensors |= {key: np.log(lines[name]) for key, name in names.items()}
    scalars = {"a_coeff": 1.0, "b_coeff": 0.0, "c_coeff": 0.0, "radial_velocity": velocity}
    state = {key: torch.as_tensor(values) for key, values in tensors.items()}
    return state | {key: torch.tensor(value, dtype=torch.float64) for key, value in scalars.items()} | more


def saved(folder, state, name="state.pt"):
    torch.save(state, folder / name)
    return folder / name


def blase_flux(lines, wavelength, profile, scale, velocity=0.0):
    """blasé 0.3's spectrum: its profiles, its sum or clamped product, centres shifted and widths not."""
    ln_flux = np.zeros_like(wavelength)
    for center, area, sigma, gamma in zip(*(lines[k] for k in ("center", "area", "sigma", "gamma")), strict=True):
        x = wavelength - center * (1.0 + velocity / 299_792.458)
        if (
            profile == "exact"
        ):  # emulator.py calls exact_voigt_profile(center, gamma, sigma), defined (center, sigma, gamma)
            y = area * voigt_profile(x, gamma, sigma)
        else:
            gauss, lorentz = 2.3548 * sigma, 2.0 * gamma
            whole = (
                gauss**5 + 2.69269 * gauss**4 * lorentz + 2.42843 * gauss**3 * lorentz**2
                + 4.47163 * gauss**2 * lorentz**3 + 0.07842 * gauss * lorentz**4 + lorentz**5
            ) ** 0.2  # fmt: skip
            ratio = lorentz / whole
            eta = 1.36603 * ratio - 0.47719 * ratio**2 + 0.11116 * ratio**3
            lorentzian = 1 / 3.141592654 * gamma / (gamma**2 + x**2)
            gaussian = 1.0 / (sigma * 2.5066) * np.exp(-0.5 * (x / sigma) ** 2)
            y = area * (eta * lorentzian + (1 - eta) * gaussian)
        ln_flux += -y if scale == "log" else np.log(1.0 - np.clip(y, 0.0, 0.999999999))
    return np.exp(ln_flux)


def flux_of(emulator, wavelength):
    with torch.no_grad():
        return emulator(Sampling(torch.as_tensor(wavelength))).numpy()


@pytest.mark.parametrize("velocity", [0.0, -9.2665, 300.0])
def test_exact_log_state(tmp_path, velocity):
    """σ and γ change places, as in blasé's call of its exact profile; nothing is approximated."""
    path = saved(tmp_path, state_of(LINES, velocity))
    emulator = sb.read_blase_state(path, flux_scale="log")
    order = np.argsort(LINES["center"])
    np.testing.assert_allclose(emulator.sigma.detach().numpy(), LINES["gamma"][order], rtol=1e-12)
    np.testing.assert_allclose(emulator.gamma.detach().numpy(), LINES["sigma"][order], rtol=1e-12)
    grid = GRID * (1.0 + velocity / SPEED_OF_LIGHT)
    expected = blase_flux(LINES, grid, "exact", "log", velocity)
    np.testing.assert_allclose(flux_of(emulator, grid), expected, rtol=0, atol=2e-6)
    rest = sb.read_blase_state(path, flux_scale="log", at_rest=True)
    np.testing.assert_array_equal(rest.shifted_center.detach().numpy(), LINES["center"][order])


@pytest.mark.parametrize("flux_scale, best", [("linear", 1e-3), ("log", 1e-5)])
def test_mixed_profile(tmp_path, flux_scale, best):
    """The named approximation: exact Voigts with the flux of blasé's mixture within 1e-3; in log scale any better."""
    path = saved(tmp_path, state_of(LINES, 5.0))
    expected = blase_flux(LINES, GRID, "mixed", flux_scale, 5.0)
    errors, numbers = [], []
    for tolerance in (1e-2, best):
        emulator = sb.read_blase_state(path, flux_scale=flux_scale, profile="mixed", tolerance=tolerance)
        errors.append(np.abs(flux_of(emulator, GRID) - expected).max())
        numbers.append(len(emulator))
        assert errors[-1] < tolerance
    assert numbers == sorted(numbers) and 4 <= numbers[0] < numbers[-1] <= 12
    assert sb.read_blase_state(path, flux_scale="linear").law.name == "linear"


def test_linear_state_trains_on(tmp_path):
    """The result is an emulator like any other: gradients to every parameter."""
    emulator = sb.read_blase_state(saved(tmp_path, state_of(LINES)), flux_scale="linear")
    emulator(Sampling(torch.as_tensor(GRID))).sum().backward()
    for parameter in emulator.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", ["T4700g4p5_lines", "T4700g4p5_WASP69_MAP_lines"])
def test_published_states(shared_data, tmp_path, name):
    """blasé's own lines in part of HPF order 5, as its linear emulator has them.

    In the second state five products exceed 1, and blasé cuts their cores off at zero flux: a corner.
    """
    table = np.load(shared_data / f"data/blase/{name}.npz")
    near = (table["center"] > 8640) & (table["center"] < 8760)
    lines = {key: table[key][near] for key in table.files}
    path = saved(tmp_path, state_of(lines, -9.2665))
    emulator = sb.read_blase_state(path, flux_scale="linear")
    grid = np.arange(8655.0, 8745.0, 0.004)
    difference = flux_of(emulator, grid) - blase_flux(lines, grid, "mixed", "linear", -9.2665)
    assert np.abs(difference).max() < 1e-3
    assert np.sqrt(np.mean(difference**2)) < 1.5e-4
    assert near.sum() < len(emulator) < 2.2 * near.sum()


def test_dense_state_without_velocity(tmp_path):
    """LinearEmulator has no radial velocity; a state of Parameters, or on half precision, is read as well."""
    state = state_of(LINES)
    del state["radial_velocity"]
    parameters = {key: torch.nn.Parameter(value.float()) for key, value in state.items()}
    emulator = sb.read_blase_state(saved(tmp_path, parameters), flux_scale="log")
    assert emulator.ln_area.dtype == torch.float64 and len(emulator) == 4
    assert (emulator.rv_offset == 0).all()


def test_continuum_is_named_in_a_warning(tmp_path, caplog):
    state = state_of(LINES) | {"b_coeff": torch.tensor(0.1, dtype=torch.float64)}
    sb.read_blase_state(saved(tmp_path, state), flux_scale="log")
    assert "continuum" in caplog.text and "left out" in caplog.text


def test_parameters(tmp_path):
    extrinsic = saved(tmp_path, {"ln_vsini": torch.tensor(0.1, dtype=torch.float64)})
    assert read_blase_parameters(extrinsic)["vsini"].value == pytest.approx(0.9 + np.exp(0.1))
    instrument = {
        "ln_sigma_angs": torch.tensor(-2.8134, dtype=torch.float64),
        "linear_model.weight": torch.zeros(1, 15, dtype=torch.float64),
        "linear_model.bias": torch.ones(1, dtype=torch.float64),
    }
    values = read_blase_parameters(saved(tmp_path, instrument))
    assert values["lsf_sigma"].value == pytest.approx(0.01 + np.exp(-2.8134))
    assert values["continuum_weight"].shape == (15,) and values["continuum_bias"].tolist() == [1.0]
    with pytest.raises(ValueError, match=r"and no lines; read_blase_parameters reads it"):
        sb.read_blase_state(extrinsic, flux_scale="log")
    with pytest.raises(ValueError, match=r"expected keys among ln_vsini, .*, got lam_centers"):
        read_blase_parameters(saved(tmp_path, state_of(LINES)))


# --- files that are none ----------------------------------------------------------------------------------------------


class Bomb:
    """Its pickle would make a folder."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


F64 = torch.float64
LINE = torch.ones(3, dtype=F64)


@pytest.mark.parametrize(
    "state, reason",
    [
        ({"lam_centers": LINE}, "it lacks amplitudes, sigma_widths, gamma_widths"),
        (state_of(LINES, extra=LINE), "it has extra as well"),
        (state_of(LINES, amplitudes=LINE), "expected one value a line, got 3, 4 values"),
        (state_of(LINES, amplitudes=torch.full((4,), torch.nan, dtype=F64)), "amplitudes holds NaN or infinite"),
        (state_of(LINES, amplitudes=torch.ones(4, dtype=torch.int64)), "a tensor of real numbers, got torch.int64"),
        (state_of(LINES, amplitudes=[1.0] * 4), "a tensor of real numbers, got list"),
        (state_of(LINES, amplitudes=torch.ones(2, 2, dtype=F64)), r"with 1 dimension\(s\), got shape \(2, 2\)"),
        (state_of(LINES, amplitudes=LINE[:1].expand(50_000_000)), r"amplitudes with 1 dimension\(s\)"),
        (state_of(LINES, amplitudes=torch.full((4,), 500.0, dtype=F64)), "natural logarithms of Å, got other numbers"),
        (state_of(LINES, lam_centers=torch.tensor([-1.0, 2, 3, 4], dtype=F64)), "expected centres in Å"),
        (state_of(LINES, radial_velocity=LINE), r"radial_velocity with 0 dimension\(s\)"),
        (state_of({key: values[:0] for key, values in LINES.items()}), "expected one value a line, got 0 values"),
        ([1, 2, 3], "expected a state dict, got list"),
        ({}, "it lacks lam_centers"),
    ],
)  # fmt: skip
def test_refused(tmp_path, state, reason):
    path = saved(tmp_path, state)
    with pytest.raises(ValueError, match=reason) as caught:
        sb.read_blase_state(path, flux_scale="log")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_code_is_refused(tmp_path, packed):
    """A pickle that would call a function is not read, in either of torch's formats, and nothing runs."""
    witness = tmp_path / "was_here"
    path = tmp_path / "bomb.pt"
    if packed:
        torch.save(state_of(LINES, bomb=Bomb(witness)), path)
    else:
        path.write_bytes(pickle.dumps({"lam_centers": Bomb(witness)}))
    reason = "which could run code" if packed else "of another kind, or damaged"  # no pickle that torch would write
    with pytest.raises(ValueError, match=rf"cannot read .*bomb.pt: no state dict of PyTorch \(.*{reason}"):
        sb.read_blase_state(path, flux_scale="log")
    assert not witness.exists()


def test_options_and_missing_files(tmp_path):
    path = saved(tmp_path, state_of(LINES))
    with pytest.raises(ValueError, match='flux_scale must be "linear" or "log"'):
        sb.read_blase_state(path, flux_scale="minnaert")
    with pytest.raises(ValueError, match="has the profiles mixed in linear scale, got 'exact'"):
        sb.read_blase_state(path, flux_scale="linear", profile="exact")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sb.read_blase_state(tmp_path / "none.pt", flux_scale="log")
    for content in (b"", b"hello", b"#ASDF 1.0.0\n", b"PK\x03\x04broken", b"\x80\x02."):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*bad.pt"):
            sb.read_blase_state(tmp_path / "bad.pt", flux_scale="log")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"no pickle")
    with pytest.raises(ValueError, match=r"cannot read .*zip.pt"):
        sb.read_blase_state(tmp_path / "zip.pt", flux_scale="log")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_fuzzed_states(tmp_path, data):
    """Bytes changed or cut off: the same lines, or an error that names the file."""
    content = bytearray(saved(tmp_path, state_of(LINES), "good.pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        elif data.draw(st.integers(0, 3)) == 0:
            del content[max(place, 1) :]
    path = tmp_path / "fuzzed.pt"
    path.write_bytes(bytes(content))
    try:
        emulator = sb.read_blase_state(path, flux_scale="log")
    except ValueError as error:
        assert "fuzzed.pt" in str(error)
    else:
        assert len(emulator) == 4
