"""`EchelleModel` in a file: its components once, and for each order its instrument and the lines that it sees."""

from typing import Any

from asdf.extension import Converter


class EchelleModelConverter(Converter):
    """Between `EchelleModel` and ``echelle_model-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/echelle_model-*"]
    types = ["specutils_blase.model.echelle.EchelleModel"]

    def select_tag(self, obj, tags, ctx):
        from .forward_model import version_for

        return version_for(obj, tags)

    def to_yaml_tree(self, obj, tag, ctx):
        from .forward_model import component_record, has_list, motion_record

        for order in obj.orders:
            _check_shared(obj, order)
        if has_list(tag):
            orders = [_listed_order_record(order) for order in obj.orders]
            return {"components": [component_record(part) for part in obj.parts.values()], "orders": orders}
        return {**obj.components, **motion_record(obj), "orders": [_order_record(order) for order in obj.orders]}

    def from_yaml_tree(self, node, tag, ctx):
        from ...model.echelle import EchelleModel
        from ...model.extrinsic import DopplerShift
        from .forward_model import emulators_from_record, has_list

        if has_list(tag):
            return _listed(node)
        emulators = emulators_from_record(node)
        doppler = DopplerShift(node["rv"]) if "rv" in node else None
        orders = [_order(record, emulators, doppler, node.get("rotation")) for record in node["orders"]]
        for order in orders[1:]:
            if order.rotation is not None:
                order.rotation.vsini = orders[0].rotation.vsini
                order.rotation.limb_darkening = orders[0].rotation.limb_darkening
        return EchelleModel(orders, **emulators)


def _check_shared(model, order):
    """Raise ValueError if orders do not share the parts that are written once: all would be read with the first's."""
    same = order.parts.keys() == model.parts.keys()
    if not (same and all(_is_placed(order.parts[name], part) for name, part in model.parts.items())):
        raise ValueError(
            "expected orders that share lines, velocity, rotation and limb darkening, as those of "
            "EchelleModel.for_orders, got an order with its own: write its model alone"
        )


def _is_placed(part, owner):
    """Whether a component of an order is one of the model's, as `Component.placed` gives it."""
    from ...model.line_view import LineView

    view = part.emulator
    same = view is None if owner.emulator is None else isinstance(view, LineView) and view.parent is owner.emulator
    same &= part.doppler is owner.doppler and part.amount is owner.amount
    same &= (part.shines, part.prefix) == (owner.shines, owner.prefix)
    same &= (part.rotation is None) == (owner.rotation is None)
    if same and part.rotation is not None:
        same &= part.rotation.vsini is owner.rotation.vsini
        same &= part.rotation.limb_darkening is owner.rotation.limb_darkening
    return same


def _order_record(order):
    from ..records import array
    from .forward_model import instrument_record, room_record

    node = instrument_record(order)
    node["lines"] = {name: array(view.index) for name, view in order.components.items()}
    if order.rotation is not None:
        node["rotation"] = room_record(order.rotation)
    return node


def _listed_order_record(order):
    from ..records import array
    from .forward_model import instrument_record, room_record

    node = instrument_record(order)
    node["lines"] = {name: array(view.index) for name, view in order.components.items()}
    rotations = {name: part.rotation for name, part in order.parts.items() if part.rotation is not None}
    if rotations:
        node["rotation"] = {name: room_record(rotation) for name, rotation in rotations.items()}
    return node


def _listed(node):
    """The model of a file that lists its components."""
    from ...model.echelle import EchelleModel
    from ...model.order import ForwardModel
    from .forward_model import component_from_record

    records, names = node["orders"], [record["name"] for record in node["components"]]
    stages = [_instrument(record, names) for record in records]
    rotating = {record["name"] for record in node["components"] if "rotation" in record}
    if any(record.get("rotation", {}).keys() != rotating for record in records):
        raise ValueError("expected a rotation of a component in all orders or in none")
    parts = []
    for record in node["components"]:
        if record["name"] in rotating:  # the model's own has the room that the first order has
            rotation = record["rotation"] | records[0]["rotation"][record["name"]]
            record = record | {"rotation": rotation}
        parts.append(component_from_record(record, stages[0]["sampling"]))
    orders = [
        ForwardModel(**own, components=[_placed(part, record, own["sampling"]) for part in parts])
        for record, own in zip(records, stages, strict=True)
    ]
    return EchelleModel(orders, components=parts)


def _placed(part, record, sampling):
    """A component as one order sees it, with the room that its rotation has there."""
    from .forward_model import check_room

    lines = _index(record["lines"][part.name], part.emulator)
    if part.rotation is None:
        return part.placed(0.0, lines)
    room = record["rotation"][part.name]
    check_room(room, sampling)
    placed = part.placed(room["step"], lines)
    placed.rotation.max_vsini = float(room["max_vsini"])
    return placed


def _instrument(record, names):
    """The stages of an order, of whose lines a file must have those of these components."""
    from .forward_model import instrument_from_record

    if record["lines"].keys() != set(names):
        raise ValueError(f"expected each order's lines of {', '.join(names)}, got {', '.join(record['lines'])}")
    stages = instrument_from_record(record)
    if "pixels" not in stages:
        raise ValueError("expected every order with pixels, got one without")
    return stages


def _order(record, emulators, doppler, rotation):
    from ...model.line_view import LineView
    from ...model.order import ForwardModel
    from .forward_model import rotation_from_record

    if ("rotation" in record) != (rotation is not None):
        raise ValueError("expected a rotation of all orders or of none")
    stages = _instrument(record, list(emulators))
    if rotation is not None:
        stages["rotation"] = rotation_from_record({**rotation, **record["rotation"]}, stages["sampling"])
    views: dict[str, Any] = {
        name: LineView(emulator, _index(record["lines"][name], emulator)) for name, emulator in emulators.items()
    }
    return ForwardModel(**stages, doppler=doppler, **views)


def _index(node, emulator):
    """Indices of an order's lines among all: ascending, each once."""
    from ..records import tensor

    index = tensor(node, "lines")
    if index.is_floating_point() or bool((index.diff() <= 0).any()):
        raise ValueError("expected the numbers of an order's lines as ascending integers")
    if index.numel() and not 0 <= int(index[0]) <= int(index[-1]) < len(emulator):
        raise ValueError(f"expected numbers of lines below {len(emulator)}, got {int(index[0])} to {int(index[-1])}")
    return index.long()
