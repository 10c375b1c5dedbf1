"""Files as a whole: written at once or not at all, and refused with a reason where something is wrong with them."""

import errno
import io
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import asdf
import numpy as np
import pytest
import torch
from astropy.io import fits

from specutils_blase.asdf import files
from specutils_blase.asdf.converters import LineEmulatorConverter
from specutils_blase.asdf.files import read, write
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.physics.grids import Sampling
from specutils_blase.spectra.data import pixel_edges

TAGS = "asdf://specutils-blase.org/specutils_blase/tags"


def emulator(area=0.05):
    return LineEmulator([10000.0, 10001.0], [area, area], [0.05, 0.05], [0.02, 0.02], law="minnaert")


@pytest.fixture(scope="module")
def content():
    """The bytes of a file with a whole forward model in it."""
    wavelength = torch.linspace(9995.0, 10005.0, 150, dtype=torch.float64)
    model = ForwardModel.for_order(
        wavelength, pixel_edges(wavelength), star=emulator(), telluric=emulator(), resolving_power=50_000.0
    )
    stream = io.BytesIO()
    asdf.AsdfFile({"result": model}).write_to(stream)
    return stream.getvalue()


@pytest.fixture
def existing(tmp_path):
    """A file that is there already, whose areas are 0.05."""
    path = tmp_path / "lines.asdf"
    write(emulator(), path)
    return path


def assert_whole(path, area=0.05):
    """The file is readable, has these areas, and nothing else is in its folder."""
    assert torch.allclose(read(path).area, torch.tensor(area, dtype=torch.float64))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


# --- writing ----------------------------------------------------------------------------------------------------------


def test_existing_file_is_kept_unless_told(existing):
    with pytest.raises(FileExistsError, match=r"lines.asdf exists already: .* pass overwrite=True"):
        write(emulator(0.1), existing)
    assert_whole(existing)
    write(emulator(0.1), str(existing), overwrite=True)
    assert_whole(existing, 0.1)


def test_new_file_has_the_usual_permissions_and_an_old_one_keeps_its_own(existing):
    plain = existing.with_name("plain")
    plain.touch()
    assert existing.stat().st_mode == plain.stat().st_mode
    plain.unlink()
    existing.chmod(0o640)
    write(emulator(0.1), existing, overwrite=True)
    assert existing.stat().st_mode & 0o777 == 0o640


def test_symbolic_link_stays_a_link(existing, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "link.asdf"
    link.symlink_to(existing)
    write(emulator(0.1), link, overwrite=True)
    assert link.is_symlink()
    assert_whole(existing, 0.1)


@pytest.mark.parametrize("name", ["a b%20#?.asdf", "no_suffix", "å.asdf", "x" * 250])
def test_any_file_name(name, tmp_path):
    write(emulator(), tmp_path / name)
    assert_whole(tmp_path / name)


def test_users_own_asdf_settings_do_not_split_the_file(tmp_path):
    with asdf.config_context() as config:
        config.all_array_storage = "external"
        config.all_array_compression = "bzp2"
        config.array_inline_threshold = 1000
        write(emulator(), tmp_path / "lines.asdf")
    assert_whole(tmp_path / "lines.asdf")
    assert b"data:" not in (tmp_path / "lines.asdf").read_bytes()


def break_after(monkeypatch, error, length=100):
    """Writing stops with `error` after `length` bytes are in the file."""

    class Broken(io.FileIO):
        def write(self, content):
            super().write(content[:length])
            raise error

    monkeypatch.setattr(files, "open", Broken, raising=False)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_the_old_file(error, existing, monkeypatch):
    with monkeypatch.context() as patch:
        break_after(patch, error)
        with pytest.raises(type(error)) as caught:
            write(emulator(0.1), existing, overwrite=True)
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert f"cannot write {existing}: No space left on device" in str(caught.value)
    assert_whole(existing)


def test_failure_at_the_end_leaves_the_old_file(existing, monkeypatch):
    def broken(source, target):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match=r"cannot write .*Input/output error"):
            write(emulator(0.1), existing, overwrite=True)
    assert_whole(existing)


WRITER = """
import os, signal, sys
import numpy as np
from specutils_blase.asdf import files
from specutils_blase.asdf.files import write
from specutils_blase.model.emulator import LineEmulator

def lines(area, n_line=50_000):
    center = np.linspace(10_000.0, 11_000.0, n_line)
    return LineEmulator(center, np.full(n_line, area), np.full(n_line, 0.05), np.full(n_line, 0.02))

path, both = sys.argv[1], [lines(0.05), lines(0.1)]
# The bytes are made beforehand: the writers are to spend their lives on the disk, where a kill could do harm.
made = {id(each): files._content(each, None) for each in both}
files._content = lambda result, compression: made[id(result)]
write(both[0], path, overwrite=True)
for turn in sys.stdin:
    child = os.fork()  # a new writer without the seconds that importing torch takes
    if child == 0 and turn == "end\\n":
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    while child == 0:
        both.reverse()
        write(both[0], path, overwrite=True)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def kill_writers(existing, count):
    """Kill so many writers, each at a random moment of its endless loop; how many of them left a part of a file.

    The first one is different: it ends at the last moment, the new file written and synced, but not in place.
    """
    command = [sys.executable, "-W", "ignore", "-c", WRITER, existing]
    rng, interrupted, found = np.random.default_rng(3), 0, set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        for turn in range(count):
            server.stdin.write("go\n" if turn else "end\n")
            server.stdin.flush()
            writer = int(server.stdout.readline())
            if turn:
                time.sleep(rng.uniform(0.005, 0.15))
                os.kill(writer, signal.SIGKILL)
            assert int(server.stdout.readline()) == signal.SIGKILL  # and nothing else ended it
            left = [entry for entry in existing.parent.iterdir() if entry != existing]
            assert all(entry.name.startswith(".blase-") for entry in left) and len(left) <= 1
            assert left or turn
            for entry in left:  # nobody was left to remove it
                interrupted += 1
                entry.unlink()
            area = read(existing).area.detach()
            assert len(area) == 50_000 and bool((area == area[0]).all())
            found.add(round(float(area[0]), 6))
        server.stdin.close()
    assert found <= {0.05, 0.1}
    return interrupted


needs_kill = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork and SIGKILL on this system")


@needs_kill
@pytest.mark.slow
def test_killed_writers_leave_an_old_or_a_new_file(existing):
    n_writer = int(os.environ.get("KILLED_WRITERS", "20"))
    assert kill_writers(existing, n_writer) >= n_writer // 5  # many of them in the middle of it


def test_file_and_folder_are_synced_before_and_after_the_rename(existing, monkeypatch):
    """Else a power cut could leave the new name with nothing in it."""
    done, sync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def replaced(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write(emulator(0.1), existing, overwrite=True)
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("compression", ["zlib", "bzp2", "lz4"])
def test_compression(compression, tmp_path):
    if compression == "lz4":
        pytest.importorskip("lz4")
    center = np.linspace(10000.0, 10100.0, 5000)
    many = LineEmulator(center, center * 0 + 0.1, center * 0 + 0.05, center * 0 + 0.02)
    write(many, tmp_path / "plain.asdf")
    write(many, tmp_path / "small.asdf", compression=compression)
    back = read(tmp_path / "small.asdf")
    assert all(torch.equal(a, b) for a, b in zip(many.state_dict().values(), back.state_dict().values(), strict=True))
    sizes = [(tmp_path / name).stat().st_size for name in ("small.asdf", "plain.asdf")]
    assert sizes[0] < 0.4 * sizes[1]


def test_unknown_compression(tmp_path, monkeypatch):
    for wrong in ("gzip", "input", "", b"zlib", True):
        with pytest.raises(ValueError, match="compression must be None or one of zlib, bzp2, lz4"):
            write(emulator(), tmp_path / "lines.asdf", compression=wrong)
    monkeypatch.setitem(sys.modules, "lz4", None)
    with pytest.raises(ModuleNotFoundError, match="pip install lz4"):
        write(emulator(), tmp_path / "lines.asdf", compression="lz4")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere, make it first"):
        write(emulator(), tmp_path / "nowhere" / "lines.asdf")
    with pytest.raises(IsADirectoryError, match="it is a folder, give the name of a file in it"):
        write(emulator(), tmp_path, overwrite=True)

    def forbidden(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "open", forbidden, raising=False)  # a test run as root is permitted everything
    with pytest.raises(PermissionError, match=r"cannot write .*lines.asdf: Permission denied; is .* writable"):
        write(emulator(), tmp_path / "lines.asdf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thing", [None, {"center": 1}, np.arange(3), LineEmulator, torch.nn.Linear(2, 2)])
def test_only_our_nouns_are_written(thing, tmp_path):
    with pytest.raises(TypeError, match="expected one of CloneResult, FitResult, EchelleFitResult, LineEmulator"):
        write(thing, tmp_path / "thing.asdf")


def test_what_no_schema_holds_is_not_written(tmp_path):
    lines = emulator()
    lines.wavelength_range = (9990.0,)
    with pytest.raises(ValueError, match=r"cannot write .*: LineEmulator does not fit its schema"):
        write(lines, tmp_path / "lines.asdf")
    assert list(tmp_path.iterdir()) == []


# --- reading ----------------------------------------------------------------------------------------------------------


def refused(path, content):
    """The message with which a file of these bytes is refused: a ValueError that names the file, and nothing else."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^cannot read {path}: .") as caught:
        read(path)
    assert type(caught.value) is ValueError
    return str(caught.value)


def test_whole_content_is_read(content, tmp_path):
    (tmp_path / "model.asdf").write_bytes(content)
    assert isinstance(read(tmp_path / "model.asdf"), ForwardModel)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.asdf"):
        read(tmp_path / "nothing.asdf")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    for wrong in (None, 1, np.arange(3)):
        with pytest.raises(TypeError, match="PathLike"):
            read(wrong)


def test_wrong_file_type(tmp_path):
    stream = io.BytesIO()
    fits.PrimaryHDU(np.arange(4)).writeto(stream)
    for wrong in (b"", b"\x89PNG\r\n\x1a\n", stream.getvalue(), b"center,area\n10000,0.1\n"):
        assert "expected an ASDF file, got one that starts with" in refused(tmp_path / "wrong", wrong)


def test_foreign_asdf_file(tmp_path):
    for tree in ({"flux": np.arange(3.0)}, {"result": {"ledger": 1}}, {"result": np.arange(3)}):
        stream = io.BytesIO()
        asdf.AsdfFile(tree).write_to(stream)
        message = refused(tmp_path / "foreign.asdf", stream.getvalue())
        assert "it is an ASDF file, but no 'result' of specutils_blase is in it" in message


def test_arrays_in_other_files_are_not_fetched(content, tmp_path):
    for source in (b"other.asdf", b"https://example.org/other.asdf"):
        message = refused(tmp_path / "external.asdf", content.replace(b"source: 1\n", b"source: " + source + b"\n", 1))
        assert "its arrays are in other files" in message


@pytest.mark.parametrize(
    ("old", "new"),
    [("line_emulator-1.0.0", "line_emulator-9.0.0"), ("forward_model-1.0.0", "forward_model-1.2.0")],
)
def test_future_version(old, new, content, tmp_path):
    """Whether the whole or a part of it is newer than we are."""
    message = refused(tmp_path / "future.asdf", content.replace(f"{TAGS}/{old}".encode(), f"{TAGS}/{new}".encode()))
    assert f"it holds {new}, which this version of specutils_blase does not know" in message


def test_truncated_anywhere(content, tmp_path):
    """Cut anywhere before the index of blocks at its end, a file is refused; without the index it is still whole."""
    end = content.index(b"#ASDF BLOCK INDEX")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a user may: refusing must not rest on warnings being errors
        for length in np.linspace(1, end - 1, 60).astype(int):
            refused(tmp_path / "cut.asdf", content[:length])
    (tmp_path / "whole.asdf").write_bytes(content[: end + 50])
    assert isinstance(read(tmp_path / "whole.asdf"), ForwardModel)


def test_flipped_bit_in_the_data(content, tmp_path):
    """Every block has a checksum, so that no number is changed unseen."""
    end = content.index(b"#ASDF BLOCK INDEX")
    for start in [at for at in range(end) if content.startswith(b"\xd3BLK", at)][::3]:
        damaged = bytearray(content)
        damaged[start + 4 + 2 + 48] ^= 4  # behind magic, size of the header, header
        assert "does not match given checksum" in refused(tmp_path / "flipped.asdf", bytes(damaged))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"name: minnaert", b"name: whatever", "is not valid under any of the given schemas"),
        (b"  rv: 0.0", b"  rv: fast", "'fast' is not of type 'number'"),
        (b"  rv: 0.0", b"  rw: 0.0", "Additional properties are not allowed"),
        (b"max_vsini: ", b"max_vsinj: ", "max_vsin"),
        (b"  telluric: !<asdf", b"  telluric: !<asdF", "mismatched tags"),
        (b"shape: [2]", b"shape: [9]", "buffer is too small|cannot reshape|size"),
        (b"shape: [2]", b"shape: [1]", "expected ln_area of shape|one value a line"),
        (b"result: ", b"result: !!python/object/apply:os.system ", "could not|while|no 'result'"),
    ],
)
def test_changed_text(old, new, reason, content, tmp_path):
    """What the schemas, asdf or the constructors do not accept is not accepted."""
    assert old in content
    path = tmp_path / "changed.asdf"
    refused(path, content.replace(old, new, 1))
    with pytest.raises(ValueError, match=reason):
        read(path)


def swapped(**changes):
    """Bytes of a file with a line emulator some of whose arrays are replaced, as only another program writes them."""
    node = LineEmulatorConverter().to_yaml_tree(emulator(), None, None)
    tagged = asdf.tagged.TaggedDict({**node, **changes}, f"{TAGS}/line_emulator-1.0.0")
    stream = io.BytesIO()
    asdf.AsdfFile({"result": tagged}).write_to(stream)
    return stream.getvalue()


def test_values_of_another_program(tmp_path):
    path = tmp_path / "other.asdf"
    path.write_bytes(swapped(center=np.array([10000.0, 10001.0], dtype=">f8")))
    sampling = Sampling(torch.linspace(9995.0, 10005.0, 500, dtype=torch.float64))
    assert torch.equal(read(path)(sampling), emulator()(sampling))
    assert "the centres of a line emulator must ascend" in refused(path, swapped(center=np.array([10001.0, 10000.0])))
    assert "ln_sigma of a line emulator must be finite" in refused(path, swapped(ln_sigma=np.array([np.nan, 0.0])))
    assert "the sign of a line must be +1 or -1" in refused(path, swapped(sign=np.array([0, 1], dtype=np.int8)))
    assert "expected ln_area of shape (2,), got (3,)" in refused(path, swapped(ln_area=np.zeros(3)))


def test_reading_changes_no_settings(existing):
    """The strictness of `read` is its own."""
    before = repr(asdf.get_config()), asdf.get_config().validate_on_read
    with asdf.config_context() as config:
        config.validate_on_read = False
        config.warn_on_failed_conversion = True
        read(existing)
        assert not config.validate_on_read and config.warn_on_failed_conversion
    assert (repr(asdf.get_config()), asdf.get_config().validate_on_read) == before
    assert Path(existing).exists()
