"""`FitResult` in a file: the data, the model, what the fit found, and the spectra that follow from it.

The spectra are for readers without this package; `FitResult` computes them anew from the model.
"""

from asdf.extension import Converter


class FitResultConverter(Converter):
    """Between `FitResult` and ``fit_result-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/fit_result-*"]
    types = ["specutils_blase.result.FitResult"]

    def to_yaml_tree(self, obj, tag, ctx):
        from collections.abc import Mapping

        from ..records import array, data_record, frame_record, plain, table_record, written

        settings = plain(obj.settings)
        sources = {name: settings[name] for name in obj.model.components if name in settings}
        return {
            "model": obj.model,
            "data": data_record(obj.data, obj.frame.flux_unit),
            "frame": frame_record(obj.frame),
            "spectra": {name: array(values) for name, values in obj.evaluate().items()},
            "parameters": table_record(obj.parameters),
            "ledger": table_record(obj.ledger),
            "covariance": array(obj.covariance),
            "line_covariance": {name: array(values) for name, values in obj.line_covariance.items()},
            "reduced_chi2": float(obj.reduced_chi2),
            "noise_scale": float(obj.noise_scale),
            "success": bool(obj.success),
            "message": str(obj.message),
            "history": plain(obj.history),
            "settings": settings,
            "provenance": {
                name: source if isinstance(source, Mapping) else {"source": str(source)}
                for name, source in sources.items()
            },
            "written": written(),
        }

    def from_yaml_tree(self, node, tag, ctx):
        from ...model import ForwardModel
        from ...result import FitResult
        from ..records import load_array, load_data, load_frame, load_plain, load_table

        model = node["model"]
        if not isinstance(model, ForwardModel):
            raise ValueError("expected the model of a fit as a forward model, got other data")
        data = load_data(node["data"])
        if model.pixels is not None and len(model.pixels.edges) != len(data):
            raise ValueError(f"expected a model on {len(data)} data pixels, got one on {len(model.pixels.edges)}")
        n_line = {name: len(emulator) for name, emulator in model.components.items()}
        if set(node["line_covariance"]) != set(n_line):
            came = ", ".join(node["line_covariance"])
            raise ValueError(f"expected line_covariance of {', '.join(n_line)}, got it of {came or 'nothing'}")
        return FitResult(
            model=model,
            data=data,
            frame=load_frame(node["frame"], len(data), node["data"]["flux_unit"]),
            parameters=load_table(node["parameters"], "parameters"),
            ledger=load_table(node["ledger"], "ledger"),
            covariance=load_array(node["covariance"], "covariance"),
            line_covariance={
                name: load_array(node["line_covariance"][name], "line_covariance", shape=(count, 4, 4))
                for name, count in n_line.items()
            },
            reduced_chi2=float(node["reduced_chi2"]),
            noise_scale=float(node["noise_scale"]),
            success=node["success"],
            message=node["message"],
            history=load_plain(node["history"]),
            settings=load_plain(node["settings"]),
        )
