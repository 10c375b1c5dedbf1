"""Observed spectra from known truth, by brute force: the independent oracle of the forward model.

Nothing here is shared with the model: no other module of this package is imported, and no approximation of it is used.
Slow (seconds an order) on purpose. Wavelengths are vacuum Å, velocities km/s.

- ``flux.py``: noise-free pixels from lines, by dense evaluation and high-order quadrature;
- ``observed.py``: noise, scattered line strengths, one order or many;
- ``pixels.py``: the wavelengths of HPF and IGRINS;
- ``inputs.py``: tables of lines, emulators and templates, pixel edges and quantities, checked.
"""

from .flux import rotation_kernel, simulate_flux, voigt
from .inputs import pixel_edges
from .observed import perturbed, simulate
from .pixels import hpf_wavelengths, igrins_wavelengths

__all__ = [
    "hpf_wavelengths",
    "igrins_wavelengths",
    "perturbed",
    "pixel_edges",
    "rotation_kernel",
    "simulate",
    "simulate_flux",
    "voigt",
]
