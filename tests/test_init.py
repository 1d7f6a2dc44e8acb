import subprocess
import sys

import pytest

import fnn_lightning


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
