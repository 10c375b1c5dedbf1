"""`LineEmulator` in a file: one array for each line parameter, and the saturation law by name and parameters."""

from typing import Any

from asdf.extension import Converter

LINE_PARAMETERS = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")


class LineEmulatorConverter(Converter):
    """Between `LineEmulator` and ``line_emulator-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/line_emulator-*"]
    # A view is written as the lines that it shows, and read as their owner: one order of many stands alone in a file.
    types = ["specutils_blase.model.emulator.LineEmulator", "specutils_blase.model.line_view.LineView"]

    def to_yaml_tree(self, obj, tag, ctx):
        from ..records import array, text

        node: dict[str, Any] = {name: array(getattr(obj, name)) for name in ("center", *LINE_PARAMETERS, "sign")}
        node["law"] = law_record(obj.law)
        node["wavelength_range"] = [float(end) for end in obj.wavelength_range]
        species = getattr(obj, "species", None)
        if species is not None:
            node["species"] = text([str(name) for name in species])
        return node

    def from_yaml_tree(self, node, tag, ctx):
        import numpy as np
        import torch

        from ...model.emulator import LineEmulator
        from ..records import tensor

        center = tensor(node["center"], "center").double()
        n_line = len(center)
        values = {name: tensor(node[name], name, shape=(n_line,)) for name in LINE_PARAMETERS}
        sign = tensor(node["sign"], "sign", shape=(n_line,))
        if not bool((center.diff() >= 0).all()):
            raise ValueError("the centres of a line emulator must ascend")
        if not bool((sign.abs() == 1).all()):
            raise ValueError("the sign of a line must be +1 or -1")
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} of a line emulator must be finite")
        # The parameters are set as they were: through the constructor, which takes logarithms, they would be rounded.
        ones = torch.ones_like(center)
        law = law_from_record(node["law"])
        emulator = LineEmulator(center, ones, ones, ones, sign=sign, law=law, wavelength_range=node["wavelength_range"])
        emulator.sign.copy_(sign)  # lines of equal centre may have changed places in the constructor
        for name, value in values.items():
            setattr(emulator, name, torch.nn.Parameter(value))
        if "species" in node:
            species = np.array(node["species"])
            if species.shape != (n_line,):
                raise ValueError(f"expected the species of {n_line} lines, got shape {species.shape}")
            emulator.species = species.astype(str).tolist()
        return emulator


def law_record(law):
    """A saturation law as its name and parameters.

    Raises
    ------
    ValueError
        If it is none of the three laws of `specutils_blase.physics.saturation`: its formula cannot be written.
    """
    from ...physics.saturation import Exponential, Minnaert, Product
    from ..records import array

    if type(law) is Exponential:
        return {"name": "log"}
    if type(law) is Product:
        return {"name": "linear", "guard": float(law.guard)}
    if type(law) is Minnaert:
        ends = [float(end) for end in law.wavelength_range]
        return {"name": "minnaert", "wavelength_range": ends, "coefficients": array(law.coefficients)}
    raise ValueError(
        "expected one of the package's own saturation laws (Exponential, Product, Minnaert), got "
        f"{type(law).__module__}.{type(law).__qualname__}: a file holds no code, so a custom law cannot be written"
    )


def law_from_record(record):
    """The saturation law of a record from `law_record`."""
    import torch

    from ...physics.saturation import Exponential, Minnaert, Product
    from ..records import tensor

    if record["name"] == "log":
        return Exponential()
    if record["name"] == "linear":
        return Product(guard=record["guard"])
    if record["name"] == "minnaert":
        coefficients = tensor(record["coefficients"], "coefficients")
        law = Minnaert(record["wavelength_range"], degree=len(coefficients) - 1)
        law.coefficients = torch.nn.Parameter(coefficients)
        return law
    raise ValueError(f"unknown saturation law {record['name']!r}")
