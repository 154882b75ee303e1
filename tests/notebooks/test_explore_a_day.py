"""The analyst's notebook runs from the first cell to the last on a simulated lake."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.slow
def test_the_notebook_runs(simulated_lake, monkeypatch):
    monkeypatch.setenv("ONEREC_LAKE", simulated_lake.root)
    notebook = nbformat.read(NOTEBOOKS / "explore_a_day.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert not [output for output in outputs if output.output_type == "error"]


def test_notebooks_are_kept_without_outputs():
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells if cell.cell_type == "code")
