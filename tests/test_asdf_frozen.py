"""Files of every version of the format since the first, as they lie on users' disks: they stay readable."""

import astropy.units as u
import numpy as np
import pytest
import torch
from frozen import FOLDER, VERSION, flux

import specutils_blase as sb
from specutils_blase.asdf.integration import MANIFESTS
from specutils_blase.grids import Sampling

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
    "clone-1.1.0": [0.9340940681111565, 0.8655232779462289, 0.9228987618366695, 0.942757181087312, 0.9389994310504622],
    "fit-1.1.0": [2.404171319265545, 2.5923710547265237, 2.8369492963105882, 2.743569891089164, 2.9330206773764314],
    "echelle-1.1.0": [
        2.4278303943664725,
        2.6046962395672604,
        2.8523278048884566,
        2.718161086508844,
        2.9167449140037958,
        2.8198045908056253,
        2.557365331929658,
        2.7666176599555836,
        2.769521890408265,
        2.997958784403277,
    ],
}
TYPES = {"clone": sb.CloneResult, "fit": sb.FitResult, "echelle": sb.EchelleFitResult}


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
        assert abs(rv + 12.0) < 4.0 * error < 2.0
        assert result.settings["templates"]["star"]["source"] == "LineEmulator"
        assert "Fe I" in result.ledger["species"] and "Fe I" in result.model.star.species


def test_frozen_file_has_a_quality(frozen_file):
    """That of its file; one of version 1.0.0 is assessed on reading, and says so."""
    quality = sb.read(frozen_file).quality
    assert (quality.reason("file") is not None) == frozen_file.stem.endswith("1.0.0")
    # A clone of three iterations; a fit without jitter, whose star saturates otherwise than the truth; one with it.
    speaks_against = {"clone": "converged", "fit": "chi2", "echelle": None}[frozen_file.stem.partition("-")[0]]
    assert speaks_against in quality.names if speaks_against else quality.status == "good"


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
