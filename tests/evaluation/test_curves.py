from pathlib import Path

import numpy as np
import pytest
import torch

from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.curves import losses, plot_curves
from fnn_lightning.runs.load import load_trained
from fnn_lightning.runs.loggers import read_curves
from tests.support import LAST, RUN


@pytest.fixture
def run(data_dir: str) -> Path:
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
          "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"])  # fmt: skip
    return RUN


def test_curves_and_losses_of_a_run(run: Path) -> None:
    logged = read_curves(run)
    for given in (run, str(run), LAST, Path(LAST).parent):
        loss, accuracy = plot_curves(given).axes
        for axes, name in ((loss, "loss"), (accuracy, "acc")):
            train, val = axes.lines
            assert (train.get_label(), val.get_label()) == (f"train/{name}", f"val/{name}")
            assert np.array_equal(val.get_ydata(), [value for _, value in logged[f"val/{name}"]])
            assert np.array_equal(train.get_xdata(), [1, 2, 3, 4, 5, 6])
        # 275 images are trained on, in batches of 100
        assert losses(given).shape == (6,)
    assert losses(run)[0] == pytest.approx(logged["train/loss"][0][1])


def test_losses_are_those_of_the_last_checkpoint_of_a_run(run: Path) -> None:
    checkpoint = load_trained(run).checkpoint
    checkpoint["callbacks"]["TrainLog"]["losses"] = torch.ones(2)
    torch.save(checkpoint, run / "checkpoints" / "best.ckpt")
    assert len(losses(run)) == 6
    assert losses(run / "checkpoints" / "best.ckpt").tolist() == [1, 1]


def test_what_holds_none_is_refused(run: Path, tmp_path: Path) -> None:
    for given in ("nowhere", tmp_path / "tiny", "nowhere/checkpoints/last.ckpt"):
        with pytest.raises(InputError, match=r"a run with its curves, but .* holds no curves"):
            plot_curves(given)
    with pytest.raises(InputError, match=r"but .* is a folder of runs: name one, such as .*_0"):
        plot_curves(run.parent)
    with pytest.raises(InputError, match="a checkpoint, but got 'nowhere': there is no such file"):
        losses("nowhere")
    checkpoint = load_trained(run).checkpoint
    del checkpoint["callbacks"]["TrainLog"]
    torch.save(checkpoint, LAST)
    with pytest.raises(InputError, match=r"holds the losses of its run, but got .*last\.ckpt"):
        losses(run)
