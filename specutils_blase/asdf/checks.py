"""Checks of a file before anything is built from it.

Only bytes and YAML nodes are read here: no array is made, no tag is followed, nothing is merged. A file that passes may
still be wrong, and asdf, the schemas or the converters then raise. It cannot cost more memory than its size justifies.

Does not live here: reading and writing (`files`).
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator

import yaml
from yaml.constructor import SafeConstructor

from .integration import ROOT, get_extensions

ASDF_MAGIC = b"#ASDF"
BLOCK_MAGIC = b"\xd3BLK"
INDEX_MAGIC = b"#ASDF BLOCK INDEX"

RESULT_KEY = "result"
"""Key of our object in the tree of a file."""

DIGEST_KEY = "sha256"
"""Key of the SHA-256 of the whole file, which is computed with zeros in its own place.

asdf has checksums of arrays, none of its text: a flipped bit there would be another velocity.
"""

ZERO_DIGEST = "0" * 64

MOST_FREE_BYTES, MOST_PER_BYTE = 2**29, 100
"""Memory that unpacked arrays may claim: 512 MiB, or this many times the size of the file if that is more."""

MOST_FREE_NODES = 1_000_000
"""Nodes that the tree may have with all aliases expanded; a longer text may have as many as it has bytes."""

MOST_LEVELS = 100
"""Levels of nesting that the tree may have."""

_TREE_END = re.compile(rb"\r?\n\.\.\.((\r?\n)|$)")  # as asdf searches it
_SEALED = re.compile(rb"\n" + DIGEST_KEY.encode() + rb": ['\"]?([0-9a-f]{64})\b")
_BLOCK_HEADER = struct.Struct(">4sHI4sQQQ16s")
_STREAMED = 1


def seal(content: bytes) -> bytes:
    """The file with its own digest in place of zeros.

    Parameters
    ----------
    content : bytes
        A file whose tree has `ZERO_DIGEST` at `DIGEST_KEY`.

    Returns
    -------
    bytes
    """
    seal_match = _SEALED.search(content)
    if seal_match is None:
        raise ValueError(f"expected {DIGEST_KEY} with zeros in the tree of the file")
    return content[: seal_match.start(1)] + hashlib.sha256(content).hexdigest().encode() + content[seal_match.end(1) :]


def checked(content: bytes) -> bytes:
    """The part of a file that asdf needs, without the index of its blocks, after all checks.

    Parameters
    ----------
    content : bytes
        The whole file.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        If the file is cut short, changed since it was written, claims more memory than its size justifies, refers to
        other files, holds Python objects, or none of our objects, or one of a newer version; `yaml.YAMLError` if it is
        not YAML.
    """
    begin = content.find(b"%YAML")
    end = _TREE_END.search(content, max(begin, 0))
    if begin < 0 or end is None:
        raise ValueError("it has no tree, or one without an end: the file is cut short")
    unpacked, stop = _blocks(content, end.end())
    _check_seal(content, begin, end.end())
    root = _compose(content[begin : end.end()])
    nodes = _check_size(root, end.end() - begin)
    _check_tags(root, nodes)
    claimed = max(unpacked, sum(_claim(node) for node in nodes if _is_array(node)))
    if claimed > max(MOST_FREE_BYTES, MOST_PER_BYTE * len(content)):
        raise ValueError(
            f"its arrays claim {claimed:.3g} bytes in a file of {len(content)}: they are not what it holds"
        )
    return content[:stop]


def _blocks(content: bytes, start: int) -> tuple[int, int]:
    """Bytes that all blocks claim when unpacked, and the end of the last block."""
    unpacked, position = 0, content.find(BLOCK_MAGIC, start)
    if position < 0:
        position = start
    while content[position : position + 4] == BLOCK_MAGIC:
        if position + _BLOCK_HEADER.size > len(content):
            raise ValueError("its last array has no whole header: the file is cut short")
        _, header_size, flags, _, allocated, used, size, _ = _BLOCK_HEADER.unpack_from(content, position)
        after = position + 6 + header_size + allocated
        if flags & _STREAMED:
            raise ValueError("it ends in an array of unknown length, which specutils_blase never writes")
        if after > len(content) or used > allocated:
            left = len(content) - position
            raise ValueError(
                f"one of its arrays claims {allocated} bytes of {left} that are left: the file is cut short"
            )
        unpacked, position = unpacked + size, after
    rest = content[position:]
    if not (rest.startswith(INDEX_MAGIC) or INDEX_MAGIC.startswith(rest.rstrip(b"\0"))):
        raise ValueError(f"expected nothing after its arrays, got {rest[:8]!r}: the file is damaged")
    return unpacked, position


def _check_seal(content: bytes, begin: int, end: int) -> None:
    """Raise ValueError if the digest is wrong; files of others, or rewritten by others, need not have one."""
    seal_match = _SEALED.search(content, begin, end)
    if seal_match is None:
        return
    original = content[: seal_match.start(1)] + ZERO_DIGEST.encode() + content[seal_match.end(1) :]
    if hashlib.sha256(original).hexdigest() != seal_match.group(1).decode():
        raise ValueError(
            f"it is not what was written: its checksum differs, the file is damaged (if it was changed on purpose, "
            f"remove the key {DIGEST_KEY!r} from it)"
        )


def _compose(tree: bytes) -> yaml.Node | None:
    """The nodes of a tree.

    First its events alone, to count levels: PyYAML composes nodes by recursion in C, which ends the process where
    Python's would raise.
    """
    loader, depth = getattr(yaml, "CSafeLoader", yaml.SafeLoader), 0
    for event in yaml.parse(tree, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_LEVELS:
            raise ValueError(f"its tree is nested too deeply: more than {MOST_LEVELS} levels")
    return yaml.compose(tree, Loader=loader)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_size(root: yaml.Node | None, length: int) -> list[yaml.Node]:
    """All nodes, each once, if their number with all aliases expanded is within `MOST_FREE_NODES`.

    A few lines of aliases can stand for 10⁹ nodes. Iterative, because a hostile file nests deeper than Python recurses.
    """
    nodes: list[yaml.Node] = []
    size: dict[int, int] = {}
    path, todo = set(), [] if root is None else [(root, False)]
    while todo:
        node, seen_below = todo.pop()
        if seen_below:
            path.discard(id(node))
            size[id(node)] = 1 + sum(size[id(child)] for child in _children(node))
            nodes.append(node)
        elif id(node) in path:
            raise ValueError("a part of its tree contains itself")
        elif id(node) not in size:
            path.add(id(node))
            todo.append((node, True))
            todo.extend((child, False) for child in _children(node))
    if nodes and size[id(root)] > max(MOST_FREE_NODES, length):
        raise ValueError(f"its tree has {size[id(root)]:.3g} nodes when aliases are written out: nothing that we write")
    return nodes


def _check_tags(root: yaml.Node | None, nodes: list[yaml.Node]) -> None:
    """Raise ValueError if the file has no object of ours, or tags that are not for us."""
    result = _fields(root).get(RESULT_KEY)
    if result is None or not result.tag.startswith(f"{ROOT}/"):
        raise ValueError(
            f"it is an ASDF file, but no {RESULT_KEY!r} of specutils_blase is in it: open it with asdf.open"
        )
    tags = {node.tag for node in nodes}
    python = sorted(tag for tag in tags if "python/" in tag)
    if python:
        raise ValueError(f"it asks for Python objects ({python[0].partition('python/')[2]}), which are never made")
    if "tag:yaml.org,2002:merge" in tags:
        raise ValueError("it merges mappings (<<), which specutils_blase never writes and which can fill any memory")
    sources = (_fields(node).get("source") for node in nodes if _is_array(node))
    outside = any(source is not None and source.tag.endswith(":str") for source in sources)
    if outside or any("$ref" in _fields(node) for node in nodes):
        raise ValueError("its arrays are in other files, which specutils_blase never writes and does not fetch")
    known_tags = {definition.tag_uri for extension in get_extensions() for definition in extension.tags}
    unknown = sorted(tag for tag in tags if tag.startswith(f"{ROOT}/") and tag not in known_tags)
    if unknown:
        names = ", ".join(tag.removeprefix(f"{ROOT}/tags/") for tag in unknown)
        raise ValueError(
            f"it holds {names}, which this version of specutils_blase does not know: it was written by a newer one, "
            "update with `pip install --upgrade specutils-blase`"
        )


def _fields(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """Members of a mapping by their name, the last of each as YAML has it; nothing for other nodes."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def _is_array(node: yaml.Node) -> bool:
    return "core/ndarray-" in node.tag and isinstance(node, yaml.MappingNode)


def _claim(node: yaml.Node) -> int:
    """Bytes of an array by its shape and type. With strides it can be larger than its block."""
    fields = _fields(node)
    return _count(fields.get("shape")) * _item_size(fields.get("datatype"))


def _count(shape: yaml.Node | None) -> int:
    """Elements of a shape; a length "*", which asdf takes from the data, counts as one."""
    lengths = shape.value if isinstance(shape, yaml.SequenceNode) else []
    return math.prod(_integer(length) for length in lengths)


def _item_size(datatype: yaml.Node | None) -> int:
    """Bytes of an element: a number "float64", text ["ucs4", 16], or a list of fields."""
    if isinstance(datatype, yaml.SequenceNode):
        kinds = [item.value for item in datatype.value if isinstance(item, yaml.ScalarNode)]
        if kinds and kinds[0] in ("ascii", "ucs4"):
            return 4 * max(map(_integer, datatype.value[1:]), default=1)
        return sum(_item_size(item) for item in datatype.value)
    if isinstance(datatype, yaml.MappingNode):
        fields = _fields(datatype)
        return _count(fields.get("shape")) * _item_size(fields.get("datatype"))
    return 16  # of the widest number, complex128


def _integer(node: yaml.Node) -> int:
    if not node.tag.endswith(":int"):
        return 1
    return SafeConstructor().construct_yaml_int(node)  # raises where it is no scalar
