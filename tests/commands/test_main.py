"""What the entry does for every subcommand: output of any encoding."""

import io
import sys
from pathlib import Path

import pytest

from fnn_lightning.commands import main as entry
from fnn_lightning.commands.main import main
from fnn_lightning.runs import subprocesses
from fnn_lightning.runs.subprocesses import Subprocesses
from tests.support import RUN, Start, ended

TINY = ["--model.hidden_dims", "[8]", "--trainer.max_epochs", "1"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp932"])
def test_a_character_that_the_output_lacks_ends_no_run(
    data_dir: str, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)  # `main` changes it
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    main(["fit", "--data.data_dir", data_dir, *TINY])
    with pytest.raises(SystemExit):
        main(["fit", "--data.data_dir", "…", "--data.dataset", "–"])
    written = {}
    for name, stream in streams.items():
        stream.flush()
        written[name] = stream.buffer.getvalue().decode(encoding)
    assert "network    784?8?10 relu, 6,370 parameters\n" in written["stdout"]
    assert "test it    python -m fnn_lightning test" in written["stdout"]
    assert "but got ?" in written["stderr"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_says_at_once_that_something_is_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    terminal = io.StringIO()
    monkeypatch.setattr(entry, "import_module", lambda name: seen.append(terminal.getvalue()))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for terminal, expected in ((Terminal(), "loading …"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(AttributeError):  # of the module that was not imported
            main(["configs"])
        assert seen.pop().rpartition("\r")[2] == expected
        assert not terminal.getvalue().rpartition("\r")[2], "nothing is left of it"


def test_classes_in_the_working_folder_are_found(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("of_the_user.py").write_text(
        "from pathlib import Path\n"
        "from lightning.pytorch import Callback\n"
        "class Note(Callback):\n"
        "    def on_fit_end(self, *_): Path('noted').touch()\n"
    )
    here = ("", str(Path.cwd()))  # a console script has neither
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in here])
    main(["fit", "--data.data_dir", data_dir, "--trainer.callbacks", "of_the_user.Note", *TINY])
    assert Path("noted").exists()


def test_a_closed_output_ends_no_run(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    main(["fit", "--data.data_dir", data_dir, *TINY])
    assert (RUN / "metrics.json").is_file()
    with Subprocesses() as children:
        children.start(["--version"])  # flushes the output first
        children.wait()


def test_what_children_print_is_read_as_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; print('données –', os.environ.get('OMP_NUM_THREADS'))"
    monkeypatch.setattr(subprocesses, "PYTHON", [sys.executable, "-c", program])
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Subprocesses() as children:
        assert children.check_output([]) == "données – 1\n"
        with Path("output.txt").open("wb") as file:
            children.start([], stdout=file, env={"OMP_NUM_THREADS": "2"})
            children.wait()
    assert Path("output.txt").read_text(encoding="utf-8") == "données – 2\n"


def test_files_are_utf8_whatever_the_locale(data_dir: str, start: Start) -> None:
    Path("given.yaml").write_text("# 8×8 – é\noptimizer:\n  lr: 1e-3\n", encoding="utf-8")
    words = ["-m", "fnn_lightning", "fit", "--config", "given.yaml", "--data.data_dir", data_dir]
    process = start(*words, *TINY, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C",
                    PYTHONIOENCODING="")  # fmt: skip
    status, out, err = ended(process)
    assert (status, err) == (0, "")
    assert "optimizer  SGD, learning rate 0.001" in out
