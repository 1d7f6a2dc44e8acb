import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fnn_lightning
from tests.support import ROOT


def test_tab_finds_every_name() -> None:
    assert dir(fnn_lightning) == sorted(fnn_lightning.__all__)
    for name in fnn_lightning.__all__:
        assert getattr(fnn_lightning, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        fnn_lightning.laod  # noqa: B018


def test_names_load_when_they_are_used() -> None:
    program = (
        "import sys, fnn_lightning; dir(fnn_lightning); "
        "assert not {'torch', 'lightning'} & sys.modules.keys(); "
        "fnn_lightning.load, fnn_lightning.FNNLitModule; assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_examples_of_the_docs_run(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FNN_LIGHTNING_MIRROR", str(mirror))
    picture = Image.new("L", (100, 150), "white")
    picture.paste("black", (45, 25, 60, 125))
    picture.save("seven.png")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) > 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["classes"].shape == ()
    assert 0 < names["result"].accuracy < 1
    assert Path("mistakes.png").is_file()
    assert names["search"].best_score_ > 0.9
