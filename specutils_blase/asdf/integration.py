"""Entry points of asdf: where our schemas are and which converters we bring.

Asdf calls these two functions in every process that uses it, so nothing heavy loads here or in the converters' modules.
"""

from importlib.resources import files

ROOT = "asdf://specutils-blase.org/specutils_blase"
"""What every URI of ours starts with. URIs are names: nothing is ever fetched from there."""

MANIFESTS = ("specutils_blase-1.2.0", "specutils_blase-1.1.0", "specutils_blase-1.0.0")
"""Released manifests, newest first. A released manifest or schema is never edited: add the next version of both."""


def get_resource_mappings():
    """Schemas and manifests by their URI.

    Returns
    -------
    list of asdf.resource.DirectoryResourceMapping
    """
    from asdf.resource import DirectoryResourceMapping

    resources = files("specutils_blase.asdf") / "resources"
    return [DirectoryResourceMapping(resources / kind, f"{ROOT}/{kind}/") for kind in ("schemas", "manifests")]


def get_extensions():
    """One extension for each released manifest, newest first, all with the same converters.

    Returns
    -------
    list of asdf.extension.ManifestExtension
    """
    from asdf.extension import ManifestExtension

    from .converters import CONVERTERS

    return [
        ManifestExtension.from_uri(f"{ROOT}/manifests/{name}", converters=[converter() for converter in CONVERTERS])
        for name in MANIFESTS
    ]
