"""`CloneResult` in a file: the emulator, its ledger, the template and the clone's own spectrum."""

from asdf.extension import Converter

from .fit_result import FILE_LEDGER, load_quality, quality_of


class CloneResultConverter(Converter):
    """Between `CloneResult` and ``clone_result-*``."""

    tags = ["asdf://specutils-blase.org/specutils_blase/tags/clone_result-*"]
    types = ["specutils_blase.cloning.clone.CloneResult"]

    def to_yaml_tree(self, obj, tag, ctx):
        from ...quality.clones import assess_clone
        from ...spectra.provenance import of_template
        from ..records import plain, share, spectrum_record, table_record, written

        template, clone = share([spectrum_record(obj.template), spectrum_record(obj.model_spectrum)])
        return {
            "emulator": obj.emulator,
            "ledger": table_record(obj.ledger, "ledger", FILE_LEDGER),
            "rms": float(obj.rms),
            "quality": quality_of(obj, assess_clone).record(),
            "success": bool(obj.success),
            "message": str(obj.message),
            "history": plain(obj.history),
            "settings": plain(obj.settings),
            "template": template,
            "model_spectrum": clone,
            "provenance": of_template(obj.template),
            "written": written(),
        }

    def from_yaml_tree(self, node, tag, ctx):
        from ...cloning.clone import CloneResult
        from ...model.emulator import LineEmulator
        from ...quality.clones import assess_clone
        from ..records import load_plain, load_spectrum, load_table

        if not isinstance(node["emulator"], LineEmulator):
            raise ValueError("expected the emulator of a clone as a line emulator, got other data")
        result = CloneResult(
            emulator=node["emulator"],
            ledger=load_table(node["ledger"], "ledger", FILE_LEDGER),
            rms=float(node["rms"]),
            history=load_plain(node["history"]),
            template=load_spectrum(node["template"]),
            model_spectrum=load_spectrum(node["model_spectrum"]),
            success=node["success"],
            message=node["message"],
            settings=load_plain(node["settings"]),
        )
        return load_quality(node, result, assess_clone)
