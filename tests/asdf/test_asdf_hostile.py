"""Files that are damaged or made to harm: each refused with a reason, none believed, none able to fill the memory."""

import os
import re
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from frozen import VERSIONS, flux
from frozen import path as frozen_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import specutils_blase as sb
from specutils_blase.asdf import checks
from specutils_blase.asdf.files import read

NAMES = tuple(VERSIONS)
SEAL = re.compile(rb"\nsha256: '[0-9a-f]{64}'")
BLOCK = b"\xd3BLK"


def sealed(name):
    """The bytes of a frozen file."""
    path = frozen_path(name)
    if not path.exists():
        pytest.skip(f"{path.name} did not come with these tests")
    return path.read_bytes()


def unsealed(name):
    """The same without the checksum of the whole: as if written by others, so that reading gets as far as it can."""
    return SEAL.sub(b"", sealed(name), count=1)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What reading loads and keeps is not what a file costs."""
    for name in NAMES:
        if frozen_path(name).exists():
            read(frozen_path(name))


def refused(folder, content):
    """The message with which a file of these bytes is refused, in hardly more memory than the file itself takes."""
    path = folder / "hostile.asdf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^cannot read {re.escape(str(path))}: .") as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(caught.value) is ValueError
    assert peak < 5e7 + 20 * len(content)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# --- text that asks for more than numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch harmed"]',
        '!!python/object/new:os.system ["touch harmed"]',
        "!!python/name:os.system",
        "!!python/tuple [1, 2]",
        '[1, {a: !<tag:yaml.org,2002:python/object/apply:os.system> ["touch harmed"]}]',
    ],
)
def test_python_objects_are_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = unsealed("fit").replace(b"\n  settings:\n", f"\n  settings:\n    extra: {value}\n".encode(), 1)
    assert "it asks for Python objects" in refused(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.asdf"]


@pytest.mark.parametrize("kind", [b"object", b"object64", b"[object, 8]", b"O"])
def test_arrays_of_objects_are_refused(kind, tmp_path):
    content = unsealed("fit").replace(b"datatype: float64", b"datatype: " + kind, 1)
    assert "is not valid under any of the given schemas" in refused(tmp_path, content)


def test_references_to_elsewhere_are_refused(tmp_path):
    for target in (b"http://localhost:9/other.asdf#/result", b"file:///etc/passwd", b"#/result/model"):
        content = unsealed("fit").replace(
            b"\n  settings:\n", b"\n  settings:\n    extra: {$ref: '" + target + b"'}\n", 1
        )
        assert "in other files, which specutils_blase never writes and does not fetch" in refused(tmp_path, content)


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"shape: \[40\]", b"shape: [1000000000000]"),
        (rb"shape: \[40\]", b"shape: [1000000, 1000000]\n      strides: [1, 1]"),
        (rb"shape: \[40\]", b"shape: [0x7fffffffffff]"),
        (rb"shape: \[40\]", b"shape: [1_000_000_000]\n      strides: [1]"),
        (rb"source: \d+\n( *)datatype: float64", b"source: 1\n\\1datatype: [ucs4, 100000000000]"),
        (
            rb"source: \d+\n( *)datatype: float64",
            b"source: 1\n\\1datatype: [{name: a, datatype: int8, shape: [1000000, 1000000]}]",
        ),
    ],
    ids=["length", "strides", "hexadecimal", "underscores", "text", "fields"],
)
def test_arrays_larger_than_the_file_are_refused(old, new, tmp_path):
    content, count = re.subn(old, new, unsealed("fit"), count=1)
    assert count == 1
    assert "its arrays claim" in refused(tmp_path, content)


def test_one_block_looked_at_often_is_refused(tmp_path):
    """A thousand arrays that share a block are a thousand copies of it once they are read."""
    node = "!core/ndarray-1.1.0 {source: 0, datatype: float64, byteorder: little, shape: [100000]}"
    extra = "".join(f"    extra{k}: {node}\n" for k in range(1000))
    content = unsealed("fit").replace(b"\n  settings:\n", f"\n  settings:\n{extra}".encode(), 1)
    assert "its arrays claim 1.6e+09 bytes" in refused(tmp_path, content)


@pytest.mark.parametrize("compression", [b"zlib", b"bzp2", b"lz4\0"])
def test_compressed_array_that_claims_too_much_is_refused(compression, tmp_path):
    content = bytearray(unsealed("fit"))
    start = content.index(BLOCK) + 6
    flags, _, allocated, used, _, digest = struct.unpack_from(">I4sQQQ16s", content, start)
    struct.pack_into(">I4sQQQ16s", content, start, flags, compression, allocated, used, 10**12, digest)
    assert "its arrays claim 1e+12 bytes" in refused(tmp_path, bytes(content))


@pytest.mark.parametrize(("field", "value"), [("allocated", 2**62), ("used", 2**62), ("flags", 1)])
def test_blocks_that_do_not_fit_are_refused(field, value, tmp_path):
    content = bytearray(unsealed("fit"))
    start = content.index(BLOCK) + 6
    header = dict(
        zip(
            ("flags", "compression", "allocated", "used", "size", "digest"),
            struct.unpack_from(">I4sQQQ16s", content, start),
            strict=True,
        )
    )
    struct.pack_into(">I4sQQQ16s", content, start, *(header | {field: value}).values())
    assert re.search("cut short|unknown length", refused(tmp_path, bytes(content)))


def bomb(levels, repeat):
    """YAML in which each of ten levels holds the one below ten times."""
    lines = ["    a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"    a{k}: &a{k} " + repeat(k - 1) for k in range(1, levels)]
    return ("\n".join(lines) + "\n").encode()


def test_alias_bomb_is_refused(tmp_path):
    extra = bomb(12, lambda k: "[" + ", ".join(10 * [f"*a{k}"]) + "]")
    content = unsealed("fit").replace(b"\n  settings:\n", b"\n  settings:\n" + extra, 1)
    assert "nodes when aliases are written out" in refused(tmp_path, content)


def test_merge_bomb_is_refused(tmp_path):
    """Few nodes even with aliases written out, but PyYAML copies what it merges into lists of lists."""
    extra = b"    m0: &m0 {a: 1}\n"
    extra += b"".join(f"    m{k}: &m{k} {{<<: [*m{k - 1}, *m{k - 1}]}}\n".encode() for k in range(1, 12))
    content = unsealed("fit").replace(b"\n  settings:\n", b"\n  settings:\n" + extra, 1)
    assert "it merges mappings" in refused(tmp_path, content)


def test_tree_that_contains_itself_is_refused(tmp_path):
    content = unsealed("fit").replace(b"\n  settings:\n", b"\n  settings:\n    loop: &loop [1, *loop]\n", 1)
    assert "contains itself" in refused(tmp_path, content)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_deep_nesting_is_refused(depth, tmp_path):
    extra = b"\n  settings:\n    deep: " + b"[" * depth + b"]" * depth + b"\n"
    message = refused(tmp_path, unsealed("fit").replace(b"\n  settings:\n", extra, 1))
    assert re.search("nested too deeply|[Dd]epth|nesting", message)


def test_number_of_many_digits_is_refused(tmp_path):
    content = re.sub(rb"(\n *)reduced_chi2: [^\n]+", rb"\1reduced_chi2: " + b"9" * 10**6, unsealed("fit"), count=1)
    assert refused(tmp_path, content)


def test_garbage_after_the_arrays_is_refused(tmp_path):
    content = unsealed("fit")
    end = content.index(b"#ASDF BLOCK INDEX")
    assert "expected nothing after its arrays" in refused(tmp_path, content[:end] + b"something else" + content[end:])


def test_false_index_of_blocks_harms_nobody(tmp_path):
    """It is not used: asdf would look for arrays wherever it says."""
    content = unsealed("fit")
    end = content.index(b"#ASDF BLOCK INDEX")
    path = tmp_path / "index.asdf"
    for index in (b"", b"#ASDF BLOCK INDEX\n%YAML 1.1\n---\n[1, 2, 3]\n...", b"#ASDF BLOCK INDEX\n[[["):
        path.write_bytes(content[:end] + index)
        np.testing.assert_array_equal(flux(read(path)), flux(read(frozen_path("fit"))))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (rb"\n    rv: [^\n]+", rb"\n    rv: 4.0e+5", "greater than the maximum"),
        (rb"n_half: \d+", rb"n_half: 1000000000", "line spread"),
        (rb"\n( +)step: [^\n]+", rb"\n\1step: 1.0e-12", "step"),
        (rb"max_vsini: [^\n,}]+", rb"max_vsini: 1.0e+12", "greater than the maximum"),
        (rb"colnames: \[name,", rb"colnames: [nome,", "without name"),
    ],
)
def test_numbers_that_no_spectrum_has_are_refused(old, new, reason, tmp_path):
    content, count = re.subn(old, new, unsealed("fit"), count=1)
    assert count == 1
    assert reason in refused(tmp_path, content)


# --- what belongs together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (rb"(\n +lines:\n( +)star: !core/ndarray-[^\n]+)", rb"\1\n\2  offset: 8", "buffer is too small"),
        (rb"tags/echelle_model-1.0.0", rb"tags/forward_model-1.0.0", "is a required property"),
    ],
)
def test_orders_that_do_not_fit_are_refused(old, new, reason, tmp_path):
    content, count = re.subn(old, new, unsealed("echelle"), count=1)
    assert count == 1
    assert reason in refused(tmp_path, content)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_changes_a_number(name, tmp_path):
    """The checksum of the whole file covers what asdf's of the arrays do not: its text."""
    content = sealed(name)
    expected = flux(read(frozen_path(name)))
    path = tmp_path / "flipped.asdf"
    rng = np.random.default_rng(5)
    accepted = 0
    for at in rng.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            result = read(path)
        except ValueError as error:
            assert str(error).startswith(f"cannot read {path}: ")
        else:  # in the name of the checksum itself
            accepted += 1
            np.testing.assert_array_equal(flux(result), expected)
    assert accepted <= 2


def test_changed_text_is_noticed(tmp_path):
    message = refused(tmp_path, re.sub(rb"(\n +rv: -1)\d", rb"\g<1>9", sealed("fit"), count=1))
    assert "its checksum differs, the file is damaged (if it was changed on purpose, remove the key 'sha256'" in message


def test_seal_is_of_the_whole_file():
    import hashlib

    content = sealed("clone")
    place = SEAL.search(content)
    blank = content[: place.start() + 10] + b"0" * 64 + content[place.end() - 1 :]
    assert hashlib.sha256(blank).hexdigest().encode() in place.group()
    assert checks.seal(blank) == content


TEXTS = [
    b"~",
    b".nan",
    b"-1",
    b"1000000000000",
    b"[1, 2]",
    b"{}",
    b'"text"',
    b"*id001",
    b"!!python/name:os.system",
    b"1e300",
]


KINDS = {"value": 8, "flip": 4, "swap": 2, "cut": 2, "repeat": 2, "insert": 1, "zero": 1, "end": 1}
"""How often a wound is of which kind: most of those that leave YAML behind, so that what reads it is tried."""


@st.composite
def damaged_files(draw):
    """A file with one to three wounds, anywhere, in its text more often than in its arrays."""
    content = bytearray(unsealed(draw(st.sampled_from(NAMES))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))  # uniform, where hypothesis prefers both ends
    for _ in range(rng.integers(1, 4)):
        text = content.find(b"\n...")
        at = int(rng.integers(0, text if text > 0 and rng.random() < 0.8 else len(content)))
        wound(content, at, rng.choice(list(KINDS), p=np.array(list(KINDS.values())) / sum(KINDS.values())), rng)
        if len(content) < 20:
            break
    return bytes(content), draw(st.booleans())


def wound(content, at, kind, rng):
    """Change bytes at and behind a place."""
    span = int(rng.integers(1, 40))
    if kind == "value":  # another value for the next key
        found = re.compile(rb": [^\n{\[&*!]+(?=\n)").search(content, at)
        if found:
            content[found.start() + 2 : found.end()] = TEXTS[rng.integers(len(TEXTS))]
    elif kind == "flip":
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == "swap":  # two lines
        lines = content.split(b"\n")
        k, m = content[:at].count(b"\n"), int(rng.integers(min(len(lines), 800)))
        lines[k], lines[m] = lines[m], lines[k]
        content[:] = b"\n".join(lines)
    elif kind == "cut":
        del content[at : at + span]
    elif kind == "repeat":
        content[at:at] = content[at : at + span]
    elif kind == "insert":
        content[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == "zero":
        content[at : at + span] = bytes(len(content[at : at + span]))
    else:
        del content[at:]


def check_damaged(damaged, folder):
    """Refused with a reason, or read as a whole object: nothing else."""
    content, strict = damaged
    path = folder / "damaged.asdf"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        try:
            result = read(path)
        except ValueError as error:
            assert type(error) is ValueError and str(error).startswith(f"cannot read {path}: ")
            assert len(str(error)) < 1000
            return
    assert isinstance(result, (sb.CloneResult, sb.FitResult))
    with np.errstate(all="ignore"):
        assert flux(result).dtype == float


FUZZ = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@pytest.mark.slow  # DAMAGED_FILES=2500 takes five minutes more, and passes
@given(damaged_files())
@settings(max_examples=int(os.environ.get("DAMAGED_FILES", "150")), **FUZZ)
def test_many_damaged_files(tmp_path, damaged):
    check_damaged(damaged, tmp_path)
