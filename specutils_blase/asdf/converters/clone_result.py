"""`CloneResult` in a file: the emulator, its ledger, the template and the clone's own spectrum."""

from asdf.extension import Converter


class CloneResultConverter(Converter):
    """Between `CloneResult` and ``clone_result-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/clone_result-*"]
    types = ["specutils_blase.cloning.CloneResult"]

    def to_yaml_tree(self, obj, tag, ctx):
        from ..records import plain, spectrum_record, table_record, template_provenance, written

        template, clone = spectrum_record(obj.template), spectrum_record(obj.model_spectrum)
        if _same_axis(template["spectral_axis"], clone["spectral_axis"]):
            clone["spectral_axis"] = template["spectral_axis"]  # one object in the tree, stored once
        return {
            "emulator": obj.emulator,
            "ledger": table_record(obj.ledger),
            "rms": float(obj.rms),
            "success": bool(obj.success),
            "message": str(obj.message),
            "history": plain(obj.history),
            "settings": plain(obj.settings),
            "template": template,
            "model_spectrum": clone,
            "provenance": template_provenance(obj.template),
            "written": written(),
        }

    def from_yaml_tree(self, node, tag, ctx):
        from ...cloning import CloneResult
        from ...lines import LineEmulator
        from ..records import load_plain, load_spectrum, load_table

        if not isinstance(node["emulator"], LineEmulator):
            raise ValueError("expected the emulator of a clone as a line emulator, got other data")
        return CloneResult(
            emulator=node["emulator"],
            ledger=load_table(node["ledger"], "ledger"),
            rms=float(node["rms"]),
            history=load_plain(node["history"]),
            template=load_spectrum(node["template"]),
            model_spectrum=load_spectrum(node["model_spectrum"]),
            success=node["success"],
            message=node["message"],
            settings=load_plain(node["settings"]),
        )


def _same_axis(one, other):
    """Whether two records of spectral axes say the same."""
    import numpy as np

    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
