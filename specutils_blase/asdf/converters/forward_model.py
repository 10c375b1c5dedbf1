"""`ForwardModel` in a file: its grid, its emulators, and for each stage the arguments of its constructor.

Kernels, overlap weights and polynomial bases are not stored: they follow from the grid, the pixel edges and the
parameters. Windows kept by `ForwardModel.freeze_windows` are not stored either: a model that was read is thawed.
"""

from typing import Any

from asdf.extension import Converter

WIDEST_SPREAD_GRIDS = 10
"""Limit on the half width of a line spread, in lengths of its grid."""

FASTEST_ROTATION = 299_792
"""Limit on a v sin i [km/s], as the schema has it for the largest one that a kernel has room for."""


class ForwardModelConverter(Converter):
    """Between `ForwardModel` and ``forward_model-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/forward_model-*"]
    types = ["specutils_blase.model.order.ForwardModel"]

    def select_tag(self, obj, tags, ctx):
        return version_for(obj, tags)

    def to_yaml_tree(self, obj, tag, ctx):
        node = instrument_record(obj)
        if has_list(tag):
            return node | {"components": [_component_record(part) for part in obj.parts.values()]}
        motion = motion_record(obj)
        if "rotation" in motion:
            motion["rotation"] |= room_record(obj.rotation)
        return node | obj.components | motion

    def from_yaml_tree(self, node, tag, ctx):
        from ...model.extrinsic import DopplerShift
        from ...model.order import ForwardModel

        stages = instrument_from_record(node)
        if has_list(tag):
            parts = [component_from_record(record, stages["sampling"]) for record in node["components"]]
            return ForwardModel(**stages, components=parts)
        if "rv" in node:
            stages["doppler"] = DopplerShift(node["rv"])
        if "rotation" in node:
            stages["rotation"] = rotation_from_record(node["rotation"], stages["sampling"])
        return ForwardModel(**stages, **emulators_from_record(node))


def version_for(model, tags):
    """The tag of a model: 1.0.0 where it has the two usual components alone, otherwise the newest."""
    return min(tags) if is_usual(model) else max(tags)


def has_list(tag):
    """Whether a model of this tag lists its components."""
    return not tag.endswith("-1.0.0")


def is_usual(model):
    """Whether a model is of a star and tellurics as `star_and_telluric` makes them."""
    from ...model.component import Component
    from ...model.order import star_and_telluric

    usual = star_and_telluric(model.star, model.telluric, model.doppler, model.rotation)
    parts = list(model.parts.values())
    return len(parts) == len(usual) and all(
        type(part) is Component
        and part.amount is None
        and (part.name == "star" or (part.doppler is None and part.rotation is None))
        and all(getattr(part, name) == getattr(other, name) for name in ("name", "prefix", "shines", "free_lines"))
        for part, other in zip(parts, usual, strict=True)
    )


def component_record(part):
    """A component without the room of its rotation.

    Raises
    ------
    ValueError
        If it is of a class that is not the package's own, or has no lines.
    """
    from ...model.component import Component

    if type(part) is not Component:
        raise ValueError(
            f"expected a Component in the forward model, got {type(part).__module__}.{type(part).__qualname__}: a file "
            "holds no code, so a component of another class cannot be written"
        )
    if part.emulator is None:
        raise ValueError(f"expected the component {part.name!r} with lines, got one without: it has no spectrum")
    node = {"name": part.name, "lines": part.emulator, "shines": bool(part.shines), "prefix": part.prefix}
    if part.amount is not None:
        node["amount"] = part.amount.item()
    if part.free_lines is not None:
        node["free_lines"] = list(part.free_lines)
    return node | motion_record(part)


def _component_record(part):
    node = component_record(part)
    if "rotation" in node:
        node["rotation"] |= room_record(part.rotation)
    return node


def component_from_record(record, sampling):
    """The component of `component_record`, with a rotation where its record has the room of that."""
    import math

    from ...model.component import Component
    from ...model.emulator import LineEmulator
    from ...model.extrinsic import DopplerShift

    if not isinstance(record["lines"], LineEmulator):
        raise ValueError(f"expected the lines of {record['name']} as a line emulator, got other data")
    amount, rotation = record.get("amount"), record.get("rotation")
    if amount is not None and not math.isfinite(amount):
        raise ValueError(f"expected a finite amount of {record['name']}, got {amount}")
    return Component(
        record["name"],
        record["lines"],
        doppler=DopplerShift(record["rv"]) if "rv" in record else None,
        rotation=None if rotation is None else rotation_from_record(rotation, sampling),
        shines=record["shines"],
        amount=amount,
        prefix=record["prefix"],
        free_lines=record.get("free_lines"),
    )


def emulators_from_record(node):
    """The emulators of a model, by the name of their component."""
    from ...model.emulator import LineEmulator

    emulators = {name: node[name] for name in ("star", "telluric") if name in node}
    for name, emulator in emulators.items():
        if not isinstance(emulator, LineEmulator):
            raise ValueError(f"expected the {name} of a model as a line emulator, got other data")
    return emulators


def motion_record(model):
    """Velocity, rotation and limb darkening of a component, or of a model's star, as far as it has them."""
    from ...model.extrinsic import DopplerShift, RotationalBroadening

    node = {}
    if _own(model.doppler, DopplerShift):
        node["rv"] = model.doppler.rv.item()
    if _own(model.rotation, RotationalBroadening):
        node["rotation"] = {
            "vsini": model.rotation.vsini.item(),
            "limb_darkening": model.rotation.limb_darkening.tolist(),
        }
    return node


def room_record(rotation):
    """Arguments of the rotation kernel beside its parameters: the step of the grid and the largest v sin i."""
    return {"step": rotation.step, "max_vsini": rotation.max_vsini}


def rotation_from_record(record, sampling):
    """The rotation of `motion_record` and `room_record`; raises as `check_room`."""
    from ...model.extrinsic import RotationalBroadening

    check_room(record, sampling)
    if not record["vsini"] <= FASTEST_ROTATION:
        raise ValueError(f"expected a vsini below {FASTEST_ROTATION} km/s, got {record['vsini']:.4g} km/s")
    rotation = RotationalBroadening(
        record["vsini"],
        record["step"],
        limb_darkening=record["limb_darkening"],
        max_vsini=record["max_vsini"],
    )
    _overwrite(rotation.vsini, record["vsini"])
    return rotation


def check_room(record, sampling):
    """Raise ValueError if the step of a rotation is not that of the grid.

    A step a million times smaller would make a kernel of as many more taps.
    """
    from ...physics.grids import SPEED_OF_LIGHT

    step = sampling.step * SPEED_OF_LIGHT
    if not abs(record["step"] - step) < 1e-3 * step:
        raise ValueError(f"expected a rotation in steps of the grid, {step:.4g} km/s, got {record['step']:.4g} km/s")


def instrument_record(model):
    """Grid, line spread, pixels and continuum of an order, as far as the model has them."""
    from ...model.instrument import Continuum, LineSpreadFunction, PixelBinning
    from ...physics.grids import Sampling
    from ..records import array

    node: dict[str, Any] = {"wavelength": array(_own(model.sampling, Sampling).wavelength)}
    if _own(model.line_spread, LineSpreadFunction):
        node["line_spread"] = {
            "ln_resolving_power": array(model.line_spread.ln_resolving_power),
            "n_half": int(model.line_spread.n_half),
        }
    if _own(model.pixels, PixelBinning):
        node["pixels"] = {"edges": array(model.pixels.edges)}
    if _own(model.continuum, Continuum):
        node["continuum"] = {
            "coefficients": array(model.continuum.coefficients),
            "wavelength": array(model.continuum.wavelength),
        }
    return node


def instrument_from_record(node):
    """The stages of `instrument_record`, by the names that `ForwardModel` gives them."""
    from ...model.instrument import PixelBinning
    from ...physics.grids import Sampling
    from ..records import tensor

    grid = tensor(node["wavelength"], "wavelength")
    stages: dict[str, Any] = {"sampling": Sampling(grid)}
    if "line_spread" in node:
        stages["line_spread"] = _line_spread(node["line_spread"], grid)
    if "pixels" in node:
        stages["pixels"] = PixelBinning(tensor(node["pixels"]["edges"], "edges", shape=(None, 2)), grid)
    if "continuum" in node:
        stages["continuum"] = _continuum(node["continuum"])
    return stages


def _own(stage, kind):
    """The stage, if absent or of the package's own class; ValueError for another class, which no file can hold."""
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


def _line_spread(record, grid):
    from ...model.instrument import LineSpreadFunction
    from ..records import tensor

    coefficients = tensor(record["ln_resolving_power"], "ln_resolving_power")
    if record["n_half"] > WIDEST_SPREAD_GRIDS * len(grid):
        raise ValueError(f"expected a line spread on {len(grid)} nodes, got one of {record['n_half']} to each side")
    line_spread = LineSpreadFunction([float(coefficients[0].exp()), *coefficients[1:].tolist()], grid)
    _overwrite(line_spread.ln_resolving_power, coefficients)
    line_spread.n_half = int(record["n_half"])  # of the resolving power at the start, not of the present one
    return line_spread


def _continuum(record):
    from ...model.instrument import Continuum
    from ..records import tensor

    coefficients = tensor(record["coefficients"], "coefficients")
    continuum = Continuum(tensor(record["wavelength"], "wavelength"), len(coefficients) - 1)
    _overwrite(continuum.coefficients, coefficients)
    return continuum
