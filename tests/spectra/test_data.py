"""`SpectralData` and `pixel_edges`: what is good, what weighs, and that gaps never become giant pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specutils_blase.spectra.data import SpectralData, pixel_edges


def grid(n, step=0.05, start=8000.0):
    return start + step * torch.arange(n, dtype=torch.float64)


def example(n=20, **changes):
    rng = np.random.default_rng(1)
    arrays = {"wavelength": grid(n), "flux": torch.from_numpy(rng.normal(1, 0.1, n)), "sigma": torch.full((n,), 0.1)}
    return SpectralData.from_arrays(**(arrays | changes))


class TestPixelEdges:
    def test_midpoints_and_extrapolated_ends(self):
        edges = pixel_edges(torch.tensor([5000.0, 5001.0, 5002.2, 5003.6], dtype=torch.float64))
        expected = [[4999.5, 5000.5], [5000.5, 5001.6], [5001.6, 5002.9], [5002.9, 5004.3]]
        torch.testing.assert_close(edges, torch.tensor(expected, dtype=torch.float64))
        assert torch.equal(edges[:-1, 1], edges[1:, 0])

    def test_arrays_and_float32_come_out_as_float64_tensors(self):
        assert pixel_edges(np.linspace(5000, 5001, 11)).dtype == torch.float64
        assert pixel_edges(torch.linspace(5000, 5001, 11)).dtype == torch.float64

    def test_gapped_order_equals_its_pieces(self):
        whole = torch.cat([grid(30), grid(40, 0.07, 8050.0)])
        pieces = torch.cat([pixel_edges(whole[:30]), pixel_edges(whole[30:])])
        torch.testing.assert_close(pixel_edges(whole), pieces, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("missing", [[5], [5, 6, 7], [4, 6], [1], [18], [0, 1, 3], [4, 6, 8, 10]])
    def test_dropped_pixels_leave_the_others_as_they_were(self, missing):
        whole = grid(20)
        kept = torch.tensor([i for i in range(20) if i not in missing])
        torch.testing.assert_close(pixel_edges(whole[kept]), pixel_edges(whole)[kept], rtol=0, atol=1e-11)

    def test_pixel_alone_between_orders_has_the_width_of_its_surroundings(self):
        edges = pixel_edges(torch.cat([grid(30), grid(1, start=8100.0), grid(30, start=8200.0)]))
        assert edges[30].diff().item() == pytest.approx(0.05)

    @pytest.mark.parametrize("bridge", [0.01, 0.02])
    def test_sampling_that_changes_is_no_gap(self, bridge):
        """PHOENIX goes from 0.01 to 0.02 Å: half the spacing on each pixel's own side, wherever it happens."""
        fine = grid(50, 0.01)
        edges = pixel_edges(torch.cat([fine, grid(50, 0.02, fine[-1].item() + bridge)]))
        width = edges.diff().squeeze(1)
        torch.testing.assert_close(width[:50], torch.full((50,), 0.01, dtype=torch.float64), rtol=1e-6, atol=0)
        torch.testing.assert_close(width[51:], torch.full((49,), 0.02, dtype=torch.float64), rtol=1e-6, atol=0)

    @given(st.lists(st.sampled_from([0.05, 0.052, 0.1, 5.0]), min_size=1, max_size=60))
    def test_pixels_contain_their_centre_and_never_overlap(self, spacing):
        wavelength = 8000 + torch.tensor([0.0, *spacing], dtype=torch.float64).cumsum(0)
        edges = pixel_edges(wavelength)
        assert ((edges[:, 0] < wavelength) & (wavelength < edges[:, 1])).all()
        assert (edges[:-1, 1] <= edges[1:, 0]).all()

    @given(st.floats(-0.02, 0.02))
    def test_smooth_sampling_is_covered_without_holes(self, growth):
        spacing = 0.05 * torch.exp(growth * torch.arange(100, dtype=torch.float64))
        edges = pixel_edges(8000 + spacing.cumsum(0))
        assert torch.equal(edges[:-1, 1], edges[1:, 0])

    def test_million_pixels_in_a_moment(self):
        wavelength = grid(1_000_000, 0.01)
        assert len(pixel_edges(wavelength[torch.rand(1_000_000) > 0.1])) > 890_000

    @pytest.mark.parametrize("wavelength", [[5000.0], [[5000.0, 5001.0]], [5000.0, 5000.0], [5001.0, 5000.0]])
    def test_refuses_what_has_no_edges(self, wavelength):
        with pytest.raises(ValueError, match="pixel edges need"):
            pixel_edges(torch.tensor(wavelength))


class TestSpectralData:
    def test_bad_pixels_are_kept_without_weight(self):
        flux = torch.ones(8, dtype=torch.float64)
        flux[1], flux[2] = float("nan"), float("inf")
        sigma = torch.tensor([0.5, 1, 1, 0, -1, float("nan"), float("inf"), 2], dtype=torch.float64)
        data = example(8, flux=flux, sigma=sigma)
        assert len(data) == 8
        assert data.n_good == 2
        assert data.good.tolist() == [True] + 6 * [False] + [True]
        assert data.flux.tolist() == [1.0] + 6 * [0.0] + [1.0]
        assert data.sigma.tolist() == [0.5] + 6 * [1.0] + [2.0]

    def test_masked_spike_changes_nothing(self):
        good = torch.ones(20, dtype=torch.bool)
        good[7] = False
        quiet = example(good=good)
        spiked = example(good=good, flux=torch.where(good, quiet.flux, 1e5))
        for field in ("flux", "sigma", "good"):
            assert torch.equal(getattr(quiet, field), getattr(spiked, field))

    def test_unknown_noise_is_one(self):
        data = example(sigma=None)
        assert not data.noise_known
        assert torch.equal(data.sigma, torch.ones(20, dtype=torch.float64))
        assert example().noise_known

    def test_given_edges_are_kept(self):
        edges = torch.stack([grid(20) - 0.01, grid(20) + 0.02], 1)
        assert torch.equal(example(edges=edges).edges, edges)

    def test_frozen_and_compared_by_identity(self):
        data = example()
        with pytest.raises(dataclasses.FrozenInstanceError):
            data.flux = data.sigma
        assert data == data
        assert data != example()

    def test_moves_without_losing_wavelength_precision(self, device):
        data = example().to(device, torch.float32)
        assert data.flux.dtype == data.sigma.dtype == torch.float32
        assert data.wavelength.dtype == data.edges.dtype == torch.float64
        assert {t.device.type for t in (data.wavelength, data.edges, data.flux, data.sigma, data.good)} == {device.type}
        assert example().to(dtype=torch.float32).good.dtype == torch.bool
        assert example().to("meta").sigma.device.type == "meta"

    def test_select_keeps_the_pixels(self):
        data = example()
        chosen = data.select(data.wavelength > 8000.5)
        assert len(chosen) == 20
        assert torch.equal(chosen.good, data.wavelength > 8000.5) and 0 < chosen.n_good < 20
        assert (chosen.flux[~chosen.good] == 0).all() and (chosen.sigma[~chosen.good] == 1).all()

    @pytest.mark.parametrize("field", ["flux", "sigma", "good", "edges"])
    def test_refuses_other_shapes(self, field):
        with pytest.raises(ValueError, match=r"of one shape \(n,\)"):
            example(**{field: torch.ones(19)})

    def test_refuses_unsorted_wavelengths_with_edges(self):
        with pytest.raises(ValueError, match="strictly ascending"):
            example(3, wavelength=torch.tensor([2.0, 1.0, 3.0]), edges=torch.ones(3, 2))

    def test_integer_flux_becomes_float64(self):
        assert example(flux=torch.arange(20)).flux.dtype == torch.float64
