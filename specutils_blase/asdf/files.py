"""Reading and writing whole files: atomic, refusing to overwrite unasked, and clear about what is wrong with a file.

Does not live here: what is in a file (`converters`, `records`, the schemas).
"""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from io import BytesIO
from pathlib import Path

import asdf
from asdf.exceptions import AsdfBlockIndexWarning, AsdfConversionWarning, AsdfPackageVersionWarning
from asdf.tagged import Tagged

from .integration import ROOT, get_extensions

KEY = "result"
"""Where in the tree of a file our object is."""

MAGIC = b"#ASDF"


def write(result, path, *, overwrite: bool = False) -> None:
    """Write a clone, a fit, or a model alone to an ASDF file.

    The file appears whole or not at all: a temporary file in the same folder takes its place once it is safely on disk,
    so that a crash or a full disk leaves an older file of that name as it was.

    Parameters
    ----------
    result : CloneResult, FitResult, LineEmulator or ForwardModel
        What to write.
    path : path-like
        Where to; by custom it ends in ``.asdf``.
    overwrite : bool
        Replace a file that is there already.

    Raises
    ------
    TypeError
        If `result` is something else.
    FileExistsError
        If the file exists and `overwrite` was not asked for.
    OSError
        If the folder does not exist or cannot be written to; nothing is left behind.
    ValueError
        If `result` holds what no file can: a saturation law or a stage of the user's own, a unit without a name.
    """
    if type(result) not in _nouns():
        names = ", ".join(noun.__name__ for noun in _nouns())
        raise TypeError(f"expected one of {names} to write, got {type(result).__name__}")
    target = Path(os.path.realpath(path))  # through a symbolic link: its target is replaced, not the link
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder, give the name of a file in it")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or pass overwrite=True to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}, make it first")
    temporary = target.with_name(f".blase-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            asdf.AsdfFile({KEY: result}).write_to(stream, all_array_storage="internal")
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except asdf.ValidationError as error:
        raise ValueError(f"cannot write {path}: {type(result).__name__} does not fit its schema: {error}") from error
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}; is {target.parent} writable, with space left?"
        raise OSError(error.errno, reason) from error  # which makes it a PermissionError again, or what it was
    finally:
        temporary.unlink(missing_ok=True)


def read(path):
    """Read what `write` wrote.

    Checksums are verified, every array is a copy of its own, and nothing in the file is run as code.

    Parameters
    ----------
    path : path-like
        An ASDF file.

    Returns
    -------
    CloneResult, FitResult, LineEmulator or ForwardModel
        Evaluates to the same spectrum as what was written, on the CPU. Its emulators can be fitted on, as ``star=`` or
        ``telluric=`` of `specutils_blase.fit`.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    ValueError
        If the file is not ours, damaged, or of a version that this package does not know; the message names the file
        and the reason. No part of it is returned then.
    """
    with open(path, "rb") as stream:
        start = stream.read(len(MAGIC))
        if start != MAGIC:
            raise ValueError(f"cannot read {path}: expected an ASDF file, got one that starts with {start!r}")
        stream.seek(0)
        content = stream.read()
    try:
        _check_tags(asdf.util.load_yaml(BytesIO(content), tagged=True))
        return _load(content)
    except Exception as error:  # a damaged file can fail anywhere below: yaml, schemas, blocks, constructors
        reason = str(error).strip() or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}") from error


def _nouns() -> tuple[type, ...]:
    from ..cloning import CloneResult
    from ..lines import LineEmulator
    from ..model import ForwardModel
    from ..result import FitResult

    return CloneResult, FitResult, LineEmulator, ForwardModel


def _load(content: bytes):
    with warnings.catch_warnings(), asdf.config_context() as config:
        config.validate_on_read = True
        config.warn_on_failed_conversion = False
        # Versions are in the tags, which were checked; a damaged index of blocks hurts nobody, asdf finds them itself;
        # but a part that asdf leaves raw would be half an object.
        warnings.simplefilter("ignore", AsdfPackageVersionWarning)
        warnings.simplefilter("ignore", AsdfBlockIndexWarning)
        warnings.simplefilter("error", AsdfConversionWarning)
        with asdf.open(BytesIO(content), validate_checksums=True, memmap=False) as file:
            result = file[KEY]
    if type(result) not in _nouns():
        raise ValueError(f"its {KEY!r} is a {type(result).__name__}, nothing that specutils_blase writes")
    return result


def _check_tags(tree) -> None:
    """Say what the file is if it is not one of ours, before anything is built from it."""
    result = tree.get(KEY) if isinstance(tree, dict) else None
    if not _tag(result).startswith(f"{ROOT}/"):
        raise ValueError(
            f"it is an ASDF file, but no {KEY!r} of specutils_blase is in it: open it with asdf.open to see what is"
        )
    arrays = (node for node in _tagged(result) if "core/ndarray-" in node._tag and isinstance(node, dict))
    if any(isinstance(node.get("source"), str) for node in arrays):
        raise ValueError("its arrays are in other files, which specutils_blase never writes and does not fetch")
    known = {definition.tag_uri for extension in get_extensions() for definition in extension.tags}
    unknown = sorted({tag for tag in map(_tag, _tagged(result)) if tag.startswith(f"{ROOT}/") and tag not in known})
    if unknown:
        names = ", ".join(tag.removeprefix(f"{ROOT}/tags/") for tag in unknown)
        raise ValueError(
            f"it holds {names}, which this version of specutils_blase does not know: it was written by a newer one, "
            "update with `pip install --upgrade specutils-blase`"
        )


def _tag(node) -> str:
    return getattr(node, "_tag", "")


def _tagged(tree) -> list[Tagged]:
    """All nodes of a tree that have a tag; iterative, because a hostile file nests deeper than Python recurses."""
    found, seen, todo = [], set(), [tree]
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias, perhaps to what it is part of
            continue
        seen.add(id(node))
        if isinstance(node, Tagged):
            found.append(node)
        if isinstance(node, dict):
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return found


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets folders be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
