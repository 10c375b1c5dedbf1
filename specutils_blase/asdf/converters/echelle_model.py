"""`EchelleModel` in a file: star and tellurics once, and for each order its instrument and the lines that it sees."""

from asdf.extension import Converter


class EchelleModelConverter(Converter):
    """Between `EchelleModel` and ``echelle_model-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/echelle_model-*"]
    types = ["specutils_blase.model.echelle.EchelleModel"]

    def to_yaml_tree(self, obj, tag, ctx):
        from .forward_model import motion_record

        for order in obj.orders:
            _check_shared(obj, order)
        return {**obj.components, **motion_record(obj), "orders": [_order_record(order) for order in obj.orders]}

    def from_yaml_tree(self, node, tag, ctx):
        from ...model.echelle import EchelleModel
        from ...model.extrinsic import DopplerShift
        from .forward_model import emulators_from_record

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
    from ...model.line_view import LineView

    same = order.components.keys() == model.components.keys() and all(
        isinstance(view, LineView) and view.parent is model.components[name] for name, view in order.components.items()
    )
    same &= order.doppler is model.doppler and (order.rotation is None) == (model.rotation is None)
    if same and order.rotation is not None:
        same &= order.rotation.vsini is model.rotation.vsini
        same &= order.rotation.limb_darkening is model.rotation.limb_darkening
    if not same:
        raise ValueError(
            "expected orders that share lines, velocity, rotation and limb darkening, as those of "
            "EchelleModel.for_orders, got an order with its own: write its model alone"
        )


def _order_record(order):
    from ..records import array
    from .forward_model import instrument_record, room_record

    node = instrument_record(order)
    node["lines"] = {name: array(view.index) for name, view in order.components.items()}
    if order.rotation is not None:
        node["rotation"] = room_record(order)
    return node


def _order(record, emulators, doppler, rotation):
    from ...model.line_view import LineView
    from ...model.order import ForwardModel
    from .forward_model import instrument_from_record, rotation_from_record

    if record["lines"].keys() != emulators.keys():
        raise ValueError(f"expected each order's lines of {', '.join(emulators)}, got {', '.join(record['lines'])}")
    if ("rotation" in record) != (rotation is not None):
        raise ValueError("expected a rotation of all orders or of none")
    stages = instrument_from_record(record)
    if "pixels" not in stages:
        raise ValueError("expected every order with pixels, got one without")
    if rotation is not None:
        stages["rotation"] = rotation_from_record({**rotation, **record["rotation"]}, stages["sampling"])
    views = {name: LineView(emulator, _index(record["lines"][name], emulator)) for name, emulator in emulators.items()}
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
