"""Files of every version of the format since the first, as they lie on users' disks: they stay readable."""

import astropy.units as u
import numpy as np
import pytest
import torch
from error_bars import assert_bars, has_jitter
from frozen import FOLDER, HIT, ORDERS, VERSION, flux

import specutils_blase as sb
from specutils_blase.asdf.integration import MANIFESTS
from specutils_blase.physics.grids import Sampling

# Every eighth pixel of the model when the file was written (`frozen.flux`).
FLUX = {
    "clone-1.0.0": [0.9341558627460623, 0.8655163607865494, 0.9228297111554793, 0.9426897887910053, 0.939007750113594],
    "fit-1.0.0": [2.4023108626283167, 2.5962035355400284, 2.83739576572597, 2.741547520722387, 2.932908135923758],
    "echelle-1.0.0": [
        2.4262639203788834,
        2.6012203748197367,
        2.8507402640522375,
        2.723614752715994,
        2.9172750040969344,
        2.818026320712086,
        2.559027056319881,
        2.766212484499167,
        2.769232758243042,
        2.9980352112601514,
    ],
}
FLUX |= {
    "clone-1.1.0": [0.9360265792599306, 0.8772705546115308, 0.9719250854538491, 0.9262596117290747, 0.9868869334165018],
    "fit-1.1.0": [2.4061393421702997, 2.597041476332743, 2.847412523660555, 2.71733442187716, 2.9293085823675082],
    "echelle-1.1.0": [
        2.4263072327832416,
        2.60391630837158,
        2.8532353585066064,
        2.714823195658938,
        2.915477765555466,
        2.819799503320046,
        2.556728289094025,
        2.766265020390146,
        2.768935524572202,
        2.9985863347382256,
    ],
}
FLUX |= {
    "companion-1.2.0": [
        2.9857516667878787,
        3.154910593704754,
        3.410183336388828,
        3.273296845318585,
        3.5205421905752377,
    ],
    "companions-1.2.0": [
        3.0074974626309747,
        3.1614807320508493,
        3.4167525880910117,
        3.2685641427579584,
        3.5060767209023322,
        3.3740308728261352,
        3.1412759579334386,
        3.301047571656074,
        3.3678310941813887,
        3.6101428832069042,
    ],
}
TYPES = {"clone": sb.CloneResult, "fit": sb.FitResult, "echelle": sb.EchelleFitResult}
TYPES |= {"companion": sb.FitResult, "companions": sb.EchelleFitResult}


@pytest.fixture(params=FLUX)
def frozen_file(request):
    path = FOLDER / f"{request.param}.asdf"
    if not path.exists():
        pytest.skip(f"{path.name} did not come with these tests")
    return path


def test_frozen_file_gives_the_same_spectrum(frozen_file):
    result = sb.read(frozen_file)
    assert type(result) is TYPES[frozen_file.stem.partition("-")[0]]
    np.testing.assert_allclose(flux(result), FLUX[frozen_file.stem], rtol=1e-12)
    assert len(result.ledger) and result.ledger["center"].unit == u.AA and result.ledger["area"].info.description
    if isinstance(result, sb.CloneResult):  # whose spectrum is in the file, where fits compute theirs
        with torch.no_grad():
            own = result.emulator(Sampling(result.template.spectral_axis.to_value(u.AA))).numpy()
        np.testing.assert_allclose(own, result.model_spectrum.flux.value, rtol=1e-12)
    else:
        rv, error = result.value("rv"), result.error("rv")
        assert abs(rv + 12.0) < 4.0 * error
        assert_bars(result, "rv", jittered=has_jitter(result), rel=0.1)
        assert result.settings["templates"]["star"]["source"] == "LineEmulator"
        assert "Fe I" in result.ledger["species"] and "Fe I" in result.model.star.species


def test_frozen_file_has_a_quality(frozen_file):
    """That of its file; one of version 1.0.0 is assessed on reading, and says so."""
    quality = sb.read(frozen_file).quality
    assert (quality.reason("file") is not None) == frozen_file.stem.endswith("1.0.0")
    # A clone of three iterations; a fit whose star saturates otherwise than the truth, without and with jitter.
    told = {"clone-1.0.0": "converged", "clone-1.1.0": "converged", "fit-1.0.0": "chi2", "fit-1.1.0": "detection"}
    told["companion-1.2.0"] = "detection"  # so many lines in so few pixels
    speaks_against = told.get(frozen_file.stem)
    assert speaks_against in quality.names if speaks_against else quality.status == "good"


@pytest.mark.parametrize("frozen_file", ["companion-1.2.0", "companions-1.2.0"], indirect=True)
def test_frozen_file_tells_what_1_2_0_added(frozen_file):
    fit = sb.read(frozen_file)
    assert list(fit.model.parts) == ["star", "telluric", "companion"]
    part = fit.model.parts["companion"]
    assert part.shines and (part.velocity, part.vsini, float(part.amount.detach())) == (21.0, 6.0, 0.2)
    assert part.free_lines == () and part.prefix == "b_"
    for order in fit.model.orders:
        rotation = order.parts["companion"].rotation
        assert rotation.max_vsini == 25.0 and rotation.step == pytest.approx(order.sampling.step * 299792.458)
    assert (fit.ledger["component"] == "companion").sum() == 4 and fit.line_covariance["companion"].shape == (4, 4, 4)


@pytest.mark.parametrize("frozen_file", ["fit-1.1.0", "echelle-1.1.0"], indirect=True)
def test_frozen_file_tells_what_1_1_0_added(frozen_file):
    fit, many = sb.read(frozen_file), frozen_file.stem.startswith("echelle")
    (row,) = fit.rejected
    assert (row["order"], row["index"], row["reason"]) == ("4", HIT, "negative") and row["deviation"] < -6.0
    assert row["wavelength"].to_value(u.AA) == pytest.approx(ORDERS[0][HIT], rel=1e-12)
    settings = fit.settings
    assert settings["start"]["search"] == [-12.0, -12.0] and settings["start"]["delta_chi2"] is None
    assert settings["star_scale"]["inflation"].keys() == {"ln_area"} and settings["star_scale"]["strength_error"] > 0.0
    assert settings["order_scatter"] == ({"rv": 1.0, "vsini": 1.0} if many else {})
    assert settings["jitter"] and settings["robust"]
    if many:
        assert np.isfinite(fit.orders["rv"][fit.orders["fitted"]]).all()


def test_frozen_file_can_be_written_again(frozen_file, tmp_path):
    result = sb.read(frozen_file)
    result.write(tmp_path / "again.asdf")
    again = sb.read(tmp_path / "again.asdf")
    np.testing.assert_array_equal(flux(again), flux(result))
    assert again.quality == result.quality and again.ledger.meta["quality"] == result.quality.record()


def test_every_version_has_its_files():
    assert MANIFESTS[0] == f"specutils_blase-{VERSION}"
    versions = {name.partition("-")[2] for name in FLUX}
    assert versions == {manifest.removeprefix("specutils_blase-") for manifest in MANIFESTS}


def test_frozen_files_are_small(frozen_file):
    assert frozen_file.stat().st_size < 70_000
