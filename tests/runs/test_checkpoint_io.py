import os
import pickle
from pathlib import Path

import pytest
import torch

from fnn_lightning.errors import InputError
from fnn_lightning.runs.checkpoint_io import read_checkpoint


class RunsACommand:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("it-ran",)


def write(path: Path, kind: str) -> None:
    good = {
        "state_dict": {"layer": torch.zeros(3, 4)},
        "hyper_parameters": {"hidden_dims": [3]},
        "global_step": 5,
    }
    good["pytorch-lightning_version"] = "2.6.6"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        torch.save({**good, "weights": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "other network":
        torch.save({**good, "hyper_parameters": {"width": 3}}, path)
    elif kind == "weights alone":
        torch.save({"layers.0.weight": torch.zeros(3, 4)}, path)
    elif kind == "command":
        torch.save({**good, "extra": RunsACommand()}, path)
    elif kind == "pickled command":
        path.write_bytes(pickle.dumps(RunsACommand()))
    elif kind == "good":
        torch.save(good, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "there is no such file"),
        ("folder", "it is a folder"),
        ("empty", "it is empty"),
        ("text", "it is damaged or something else"),
        ("truncated", "it is damaged or something else"),
        ("list", "it holds something else"),
        ("other network", "it holds something else"),
        ("weights alone", "it holds something else"),
        ("command", r"it names \w+.mkdir, which is not run"),
        ("pickled command", "it is damaged or something else"),
    ],
)
def test_anything_but_a_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, kind: str, message: str
) -> None:
    write(tmp_path / "some.ckpt", kind)
    with pytest.raises(InputError, match=f"some.ckpt'?: {message}"):
        read_checkpoint(str(tmp_path / "some.ckpt"))
    assert not Path("it-ran").exists()


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    write(tmp_path / "some.ckpt", "good")
    assert read_checkpoint(str(tmp_path / "some.ckpt"))["global_step"] == 5
