"""`ForwardModel` in a file: its grid, its emulators, and for each stage what its constructor needs.

Kernels, overlap weights and polynomial bases are not stored: they follow from the grid, the pixel edges and the
parameters. Windows kept by `ForwardModel.freeze_windows` are not stored either: a model that was read is thawed.
"""

from asdf.extension import Converter


class ForwardModelConverter(Converter):
    """Between `ForwardModel` and ``forward_model-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/forward_model-*"]
    types = ["specutils_blase.model.ForwardModel"]

    def to_yaml_tree(self, obj, tag, ctx):
        from ...extrinsic import DopplerShift, RotationalBroadening
        from ...grids import Sampling
        from ...instrument import Continuum, LineSpreadFunction, PixelBinning
        from ..records import array

        node = {"wavelength": array(_own(obj.sampling, Sampling).wavelength), **obj.components}
        if _own(obj.doppler, DopplerShift):
            node["rv"] = obj.doppler.rv.item()
        if _own(obj.rotation, RotationalBroadening):
            node["rotation"] = {
                "vsini": obj.rotation.vsini.item(),
                "limb_darkening": obj.rotation.limb_darkening.tolist(),
                "step": obj.rotation.step,
                "max_vsini": obj.rotation.max_vsini,
            }
        if _own(obj.line_spread, LineSpreadFunction):
            node["line_spread"] = {
                "ln_resolving_power": array(obj.line_spread.ln_resolving_power),
                "n_half": int(obj.line_spread.n_half),
            }
        if _own(obj.pixels, PixelBinning):
            node["pixels"] = {"edges": array(obj.pixels.edges)}
        if _own(obj.continuum, Continuum):
            node["continuum"] = {
                "coefficients": array(obj.continuum.coefficients),
                "wavelength": array(obj.continuum.wavelength),
            }
        return node

    def from_yaml_tree(self, node, tag, ctx):
        from ...extrinsic import DopplerShift
        from ...grids import Sampling
        from ...instrument import PixelBinning
        from ...lines import LineEmulator
        from ...model import ForwardModel
        from ..records import tensor

        grid = tensor(node["wavelength"], "wavelength")
        stages = {name: node[name] for name in ("star", "telluric") if name in node}
        for name, emulator in stages.items():
            if not isinstance(emulator, LineEmulator):
                raise ValueError(f"expected the {name} of a forward model as a line emulator, got other data")
        if "rv" in node:
            stages["doppler"] = DopplerShift(node["rv"])
        if "rotation" in node:
            stages["rotation"] = _rotation(node["rotation"])
        if "line_spread" in node:
            stages["line_spread"] = _line_spread(node["line_spread"], grid)
        if "pixels" in node:
            stages["pixels"] = PixelBinning(tensor(node["pixels"]["edges"], "edges", shape=(None, 2)), grid)
        if "continuum" in node:
            stages["continuum"] = _continuum(node["continuum"])
        return ForwardModel(Sampling(grid), **stages)


def _own(stage, kind):
    """The stage, if absent or of the package's own kind: of another one nothing could be rebuilt."""
    if stage is not None and type(stage) is not kind:
        raise ValueError(
            f"expected a {kind.__name__} in the forward model, got {type(stage).__module__}."
            f"{type(stage).__qualname__}: a file holds no code, so a custom stage cannot be written"
        )
    return stage


def _overwrite(parameter, values):
    """Set a parameter as it was: constructors clamp and take logarithms, which rounds."""
    import torch

    with torch.no_grad():
        parameter.copy_(torch.as_tensor(values, dtype=parameter.dtype))


def _rotation(record):
    from ...extrinsic import RotationalBroadening

    rotation = RotationalBroadening(
        record["vsini"],
        record["step"],
        limb_darkening=record["limb_darkening"],
        max_vsini=record["max_vsini"],
    )
    _overwrite(rotation.vsini, record["vsini"])
    return rotation


def _line_spread(record, grid):
    from ...instrument import LineSpreadFunction
    from ..records import tensor

    coefficients = tensor(record["ln_resolving_power"], "ln_resolving_power")
    line_spread = LineSpreadFunction([float(coefficients[0].exp()), *coefficients[1:].tolist()], grid)
    _overwrite(line_spread.ln_resolving_power, coefficients)
    line_spread.n_half = int(record["n_half"])  # of the resolving power at the start, not of the present one
    return line_spread


def _continuum(record):
    from ...instrument import Continuum
    from ..records import tensor

    coefficients = tensor(record["coefficients"], "coefficients")
    continuum = Continuum(tensor(record["wavelength"], "wavelength"), len(coefficients) - 1)
    _overwrite(continuum.coefficients, coefficients)
    return continuum
