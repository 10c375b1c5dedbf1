"""Line lists: read, predict strengths, make ledgers of them.

VALD, linemake, HITRAN, arve's masks and tables become one `~astropy.table.QTable` each, with vacuum wavelengths and
normalised species; a ledger becomes one again. Does not live here: species and their populations (`chemistry`).
"""

from ..chemistry.species import normalise_species
from ..chemistry.strengths import predicted_strength
from .exporting import ledger_to_line_list
from .files import LineListError
from .ledgers import to_ledger
from .reading import read_line_list

__all__ = [
    "LineListError",
    "ledger_to_line_list",
    "normalise_species",
    "predicted_strength",
    "read_line_list",
    "to_ledger",
]
