"""Every tutorial runs from top to bottom, from installed data only, in a fresh interpreter and an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def program(notebook):
    """
    Python source of a MyST notebook: its code cells, every other line blank.

    Parameters
    ----------
    notebook : str
        Text of the notebook. Its code cells are plain Python, without magics.

    Returns
    -------
    str
        As many lines as the notebook, so that a traceback names the notebook's own lines.
    """
    blank = ["" for _ in notebook.splitlines()]
    for cell in CELL.finditer(notebook):
        first = notebook.count("\n", 0, cell.start(1))
        for number, line in enumerate(cell[1].splitlines(), first):
            if not line.startswith(":"):  # an option of the cell, such as :tags: [hide-input]
                blank[number] = line
    return "\n".join(blank) + "\n"


def test_there_are_tutorials():
    assert TUTORIALS, f"no tutorial in {FOLDER}"


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    source = program(path.read_text(encoding="utf-8"))
    assert source.strip(), f"{path} has no code cell"
    script = f"exec(compile({source!r}, {str(path)!r}, 'exec'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_cells_keep_their_lines():
    notebook = "# Title\n\n```{code-cell} ipython3\n:tags: [hide-input]\n\na = 1\n```\ntext\n```python\nnot run\n```\n"
    assert program(notebook).splitlines() == ["", "", "", "", "", "a = 1", "", "", "", "", ""]
