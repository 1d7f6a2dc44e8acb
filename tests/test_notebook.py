"""The tutorial: its cells run, and the outputs stored in it are of such a run."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import NEEDS_POSIX, ROOT, tiny_files

TUTORIAL = ROOT / "notebooks" / "tutorial.ipynb"
MAX_BYTES = 450_000  # a code host draws larger notebooks slowly, or not at all
SECONDS = 300  # for one cell, on a busy machine

# what must hold after the last cell, in the kernel
CHECKS = """
for name, run in runs.items():
    values = losses(run)
    assert len(values) == 5 * len(data.train_dataloader()), name
    assert abs(values[0] - 2.3) < 0.2, name  # a guess among ten digits
    assert values[-10:].mean() < values[:10].mean() - 0.05, name
assert [len(net.network.layers) for net in nets.values()] == [1, 3, 3, 3, 5, 7]
assert evaluate(nets["relu"], data).accuracy > 0.5
assert all(torch.equal(ours, theirs) for ours, theirs in zip(
    from_cli.parameters(), nets["relu"].parameters(), strict=True))
assert torch.allclose(torch.tensor(loop_losses), losses(runs["relu"]), atol=1e-4)
assert probabilities.shape == (10,)
assert abs(probabilities.sum() - 1) < 1e-5
"""


def read_tutorial() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> list[list[str]]:
    """Tell what kinds of output a cell has."""
    return [[each.output_type, *sorted(each.get("data", {}))] for each in cell.outputs]


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for the kernel, with stand-in data where the tutorial looks for it."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    # enough steps for a moving average over 50
    for name, content in tiny_files(train_size=2400).items():
        (raw / name).write_bytes(content)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    # `fnn` is the one of this Python
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    return tmp_path


@pytest.mark.slow
@NEEDS_POSIX  # `%%bash`
def test_cells_run(kernel_folder: Path) -> None:
    stored, notebook = read_tutorial(), read_tutorial()
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS))
    NotebookClient(
        notebook,
        timeout=SECONDS,
        startup_timeout=SECONDS,
        coalesce_streams=True,  # what a cell prints is one output, however it came
        resources={"metadata": {"path": str(kernel_folder)}},
    ).execute()
    *ran, checks = code_cells(notebook)
    assert checks.outputs == []
    assert [shown(cell) for cell in ran] == [shown(cell) for cell in code_cells(stored)]
    assert (kernel_folder / "runs" / "relu_100" / "checkpoints" / "last.ckpt").is_file()


def test_stored_outputs() -> None:
    assert TUTORIAL.stat().st_size < MAX_BYTES
    notebook = read_tutorial()
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell.metadata == {} for cell in notebook.cells)  # no times of execution
    for output in [output for cell in cells for output in cell.outputs]:
        assert output.output_type in ("display_data", "execute_result", "stream")
        assert output.get("name") != "stderr"
        text = output.get("text") or output.data.get("text/plain", "")
        # paths of a machine, progress bars and colours
        assert not re.search(r"(?<![\w.…])/\w|[A-Z]:\\|\r|\x1b|Traceback|Warning", text), text


def test_links() -> None:
    text = "".join(cell.source for cell in read_tutorial().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((.+?)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (TUTORIAL.parent / link).is_file()] == []
