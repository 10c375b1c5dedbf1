"""The documentation leads somewhere: links of Markdown resolve, and the reference describes every public name."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import specutils_blase

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
check_links = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_links)


@pytest.mark.parametrize("name", ["README.md", "docs", "tutorials"])
def test_links_of_markdown_resolve(name):
    """As GitHub follows them; .ci/run looks at the built pages."""
    files = check_links.files(ROOT / name)
    assert sum(len(check_links.links(path)) for path in files) > 0
    assert [message for path in files for message in check_links.broken(path)] == []


PAGE = """# First fit

Text with [a link]({link}).

```python
table[0](nowhere)  # code, not a link
```

## λ and *v* sin i, again

## λ and *v* sin i, again
"""


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("other.md", None),
        ("other.md#here", None),
        ("#λ-and-v-sin-i-again-1", None),
        ("https://example.org/nowhere#there", None),
        ("another.md", "no file another.md"),
        ("other.md#there", "no place other.md#there"),
        ("#λ-and-v-sin-i-again-2", "no place #λ-and-v-sin-i-again-2"),
    ],
)
def test_a_broken_link_of_markdown_is_found(link, wrong, tmp_path):
    (tmp_path / "other.md").write_text("# Here\n", encoding="utf-8")
    path = tmp_path / "page.md"
    path.write_text(PAGE.format(link=link), encoding="utf-8")
    assert check_links.broken(path) == ([] if wrong is None else [f"{path}: {wrong}"])


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ('<a href="folder/">', None),
        ('<a href="folder/index.html#here">', None),
        ('<a href="#top">', None),
        ('<a href="mailto:somebody">', None),
        ('<a href="#bottom">', "no place #bottom"),
        ('<a href="folder/index.html#there">', "no place folder/index.html#there"),
        ('<img src="picture.png">', "no file picture.png"),
    ],
)
def test_a_broken_link_of_a_page_is_found(link, wrong, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<p id="here"></p>', encoding="utf-8")
    path = tmp_path / "index.html"
    path.write_text(f'<h1 id="top"></h1>{link}', encoding="utf-8")
    assert check_links.main([str(tmp_path)]) == (0 if wrong is None else 1)
    assert (f"{path}: {wrong}" in capsys.readouterr().out) == (wrong is not None)


def test_nothing_to_look_at_is_no_success(tmp_path, capsys):
    assert check_links.main([str(tmp_path)]) == 1


@pytest.mark.parametrize("name", sorted(set(specutils_blase.__all__) - {"__version__"}))
def test_reference_describes_every_public_name(name):
    assert re.search(rf"^   {name}$", REFERENCE, re.MULTILINE)


def test_reference_has_a_page_for_every_folder():
    """And for no other one."""
    package = Path(specutils_blase.__file__).parent
    folders = {".".join(path.parent.relative_to(package).parts) for path in package.glob("*/**/__init__.py")}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    assert len(folders) > 20
    section = REFERENCE.partition("\nFolders\n")[2]
    assert set(re.findall(r"^   ([\w.]+)$", section, re.MULTILINE)) == folders | modules


# What these take is a file of an instrument or of blasé, or minutes; the tests of their folders have such files.
WITHOUT_EXAMPLE = {"clone_species", "cross_validate", "from_hpf", "from_igrins", "from_nirspec", "read_blase_state"}


def public_functions():
    """Every public function, and those of the public modules."""
    modules = (specutils_blase, specutils_blase.line_lists, specutils_blase.simulate, specutils_blase.templates)
    named = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {name: thing for name, thing in named.items() if inspect.isfunction(thing)}


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_public_functions_have_examples(name):
    """Which pytest runs, the options of `[tool.pytest.ini_options]` say so."""
    has_example = ">>> " in (inspect.getdoc(public_functions()[name]) or "").partition("Examples\n-----")[2]
    assert has_example == (name not in WITHOUT_EXAMPLE)


def test_examples_run(pytestconfig):
    assert pytestconfig.getini("doctest_plus") == "enabled"
    assert "specutils_blase" in pytestconfig.getini("testpaths")
