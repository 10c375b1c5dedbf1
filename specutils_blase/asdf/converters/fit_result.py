"""`FitResult` and `EchelleFitResult` in a file: data, model, outcome of the fit, and the spectra of the model.

The spectra are for readers without this package; results compute them anew from the model. A fit of many orders is
written as that of one, with lists of data, frames and spectra.
"""

from asdf.extension import Converter

FILE_PARAMETERS = ("name", "value", "error", "unit", "free")
FILE_LEDGER = ("component", "id", "center", "free")
FILE_ORDERS = ("index", "order", "good", "rms", "reduced_chi2", "jitter", "fitted", "reason")
FILE_REJECTED = ("order", "index", "wavelength", "reason")
FILE_MISSING_LINES = ("wavelength", "component", "id", "significance", "false_alarm_probability")
"""Columns that the tables of a file must have."""


class FitResultConverter(Converter):
    """Between `FitResult` and ``fit_result-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/fit_result-*"]
    types = ["specutils_blase.results.fit_result.FitResult"]

    def to_yaml_tree(self, obj, tag, ctx):
        from ..records import data_record, frame_record

        return {
            **_outcome_record(obj),
            "model": obj.model,
            "data": data_record(obj.data, obj.frame.flux_unit),
            "frame": frame_record(obj.frame),
            "spectra": _spectra_record(obj.evaluate()),
        }

    def from_yaml_tree(self, node, tag, ctx):
        from ...model.order import ForwardModel
        from ...quality.assessment import assess
        from ...results.fit_result import FitResult

        model = node["model"]
        if not isinstance(model, ForwardModel):
            raise ValueError("expected the model of a fit as a forward model, got other data")
        data, frame = _load_observed(node["data"], node["frame"], model)
        result = FitResult(model=model, data=data, frame=frame, **_load_outcome(node, model))
        return load_quality(node, result, assess)


class EchelleFitResultConverter(Converter):
    """Between `EchelleFitResult` and ``echelle_fit_result-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/echelle_fit_result-*"]
    types = ["specutils_blase.results.echelle_result.EchelleFitResult"]

    def to_yaml_tree(self, obj, tag, ctx):
        from ..records import data_record, frame_record, share

        return {
            **_outcome_record(obj, more_parameters=("order",), more_ledger=("orders",)),
            "model": obj.model,
            "data": [data_record(data, frame.flux_unit) for data, frame in zip(obj.data, obj.frame, strict=True)],
            "frame": share([frame_record(frame) for frame in obj.frame]),
            "spectra": [_spectra_record(parts) for parts in obj.evaluate()],
        }

    def from_yaml_tree(self, node, tag, ctx):
        import numpy as np

        from ...model.echelle import EchelleModel
        from ...quality.assessment import assess
        from ...results.echelle_result import EchelleFitResult

        model = node["model"]
        if not isinstance(model, EchelleModel):
            raise ValueError("expected the model of a fit of many orders as an échelle model, got other data")
        counts = {name: len(node[name]) for name in ("data", "frame", "spectra")}
        if set(counts.values()) != {len(model.orders)}:
            raise ValueError(f"expected data, frame and spectra of {len(model.orders)} orders, got {counts}")
        observed = [_load_observed(*parts) for parts in zip(node["data"], node["frame"], model.orders, strict=True)]
        outcome = _load_outcome(node, model, more_parameters=("order",), more_ledger=("orders",))
        fitted = int(np.sum(outcome["orders"]["fitted"]))
        if fitted != len(observed):
            raise ValueError(f"expected {len(observed)} orders that were fitted in the table orders, got {fitted}")
        data, frame = (list(column) for column in zip(*observed, strict=True))
        return load_quality(node, EchelleFitResult(model=model, data=data, frame=frame, **outcome), assess)


def quality_of(obj, assess):
    """The quality of a result, assessed now where it has none."""
    return assess(obj) if obj.quality is None else obj.quality


def load_quality(node, result, assess):
    """The result with its quality; results from files of version 1.0.0, which have none, are assessed now."""
    from ...quality.report import Quality, Reason

    if "quality" in node:
        result.quality = Quality.from_record(node["quality"])
        return result
    text = "the file is of an older version, without an assessment: it was made on reading, from what the file holds"
    return result.assessed(Quality.of([*assess(result).reasons, Reason("file", "good", text)]))


def _spectra_record(parts):
    from ..records import array

    return {name: array(values) for name, values in parts.items()}


def _load_observed(data, frame, model):
    """Data and frame of one order, of as many pixels as its model has."""
    from ..records import load_data, load_frame

    loaded = load_data(data)
    if model.pixels is None or model.continuum is None:
        raise ValueError("expected the model of a fit with pixels and a continuum, got one without")
    if len(model.pixels.edges) != len(loaded) or len(model.continuum.wavelength) != len(loaded):
        raise ValueError(f"expected a model on {len(loaded)} data pixels, got one on {len(model.pixels.edges)}")
    return loaded, load_frame(frame, len(loaded), data["flux_unit"])


def _outcome_record(obj, more_parameters=(), more_ledger=()):
    """Parameters, ledger, covariances, status and settings of a fit of one order or of many."""
    from ...quality.assessment import assess
    from ..records import array, plain, table_record, written

    settings = plain(obj.settings)
    words = {name: {"source": str(settings.get(name, ""))} for name in obj.model.components}
    record = {
        "parameters": table_record(obj.parameters, "parameters", (*FILE_PARAMETERS, *more_parameters)),
        "ledger": table_record(obj.ledger, "ledger", (*FILE_LEDGER, *more_ledger)),
        "covariance": array(obj.covariance),
        "line_covariance": {name: array(values) for name, values in obj.line_covariance.items()},
        "reduced_chi2": float(obj.reduced_chi2),
        "noise_scale": float(obj.noise_scale),
        "quality": quality_of(obj, assess).record(),
        "success": bool(obj.success),
        "message": str(obj.message),
        "history": plain(obj.history),
        "settings": settings,
        "provenance": words | settings.get("templates", {}),
        "written": written(),
    }
    if obj.orders is not None:
        record["orders"] = table_record(obj.orders, "orders", FILE_ORDERS)
    if obj.rejected is not None:
        record["rejected"] = table_record(obj.rejected, "rejected", FILE_REJECTED)
    if obj.found is not None:
        record["missing_lines"] = table_record(obj.found, "missing_lines", FILE_MISSING_LINES)
    if obj.curvature is not None:
        record["curvature"] = {
            "weight": [array(weight) for weight in obj.curvature.weight],
            "prior_precision": {name: array(values) for name, values in obj.curvature.prior_precision.items()},
        }
        if obj.curvature.mean_pull is not None:
            gradients = obj.curvature.mean_pull
            record["curvature"]["mean_pull"] = {name: array(values) for name, values in gradients.items()}
    return record


def _load_outcome(node, model, more_parameters=(), more_ledger=()):
    """The arguments of a result that `_outcome_record` wrote."""
    import numpy as np

    from ..records import load_array, load_plain, load_table

    n_line = {name: len(emulator) for name, emulator in model.components.items()}
    if set(node["line_covariance"]) != set(n_line):
        came = ", ".join(node["line_covariance"])
        raise ValueError(f"expected line_covariance of {', '.join(n_line)}, got it of {came or 'nothing'}")
    parameters = load_table(node["parameters"], "parameters", (*FILE_PARAMETERS, *more_parameters))
    n_free = int(np.sum(parameters["free"]))
    return {
        "parameters": parameters,
        "ledger": load_table(node["ledger"], "ledger", (*FILE_LEDGER, *more_ledger)),
        "covariance": load_array(node["covariance"], "covariance", shape=(n_free, n_free)),
        "line_covariance": {
            name: load_array(node["line_covariance"][name], "line_covariance", shape=(count, 4, 4))
            for name, count in n_line.items()
        },
        "reduced_chi2": float(node["reduced_chi2"]),
        "noise_scale": float(node["noise_scale"]),
        "success": node["success"],
        "message": node["message"],
        "history": load_plain(node["history"]),
        "settings": load_plain(node["settings"]),
        "orders": load_table(node["orders"], "orders", FILE_ORDERS) if "orders" in node else None,
        "curvature": _load_curvature(node["curvature"], model) if "curvature" in node else None,
        "rejected": load_table(node["rejected"], "rejected", FILE_REJECTED) if "rejected" in node else None,
        "found": load_table(node["missing_lines"], "missing_lines", FILE_MISSING_LINES)
        if "missing_lines" in node
        else None,
    }


def _load_curvature(node, model):
    from ...posterior.laplace import Curvature
    from ..records import tensor

    orders, components = model.orders, model.components
    by_component = [key for key in ("prior_precision", "mean_pull") if key in node]
    if len(node["weight"]) != len(orders) or any(node[key].keys() != components.keys() for key in by_component):
        raise ValueError(f"expected the curvature of {len(orders)} orders and of {', '.join(components)}, got another")
    weight = [
        tensor(weight, "weight", shape=(len(order.pixels.edges),)).double()
        for weight, order in zip(node["weight"], orders, strict=True)
    ]
    lines = {
        key: {
            name: tensor(values, key, shape=(len(components[name]), 4)).double() for name, values in node[key].items()
        }
        for key in by_component
    }
    return Curvature(weight, **lines)
