"""Frozen layers keep every bit, through training and resume; the others learn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.errors import InputError
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("freeze", [0, 1, 2])
def test_the_first_layers_keep_every_bit(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel, freeze: int, batch_norm: bool
) -> None:
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.1}}
    model = make_model(
        hidden_dims=[8, 6], freeze=freeze, batch_norm=batch_norm, optimizer=optimizer
    )
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    trainer(tmp_path).fit(model, make_data())
    linear = [i for i, layer in enumerate(model.network.layers) if isinstance(layer, nn.Linear)]
    changed = {
        int(name.split(".")[1])
        for name, value in model.network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    learnt = {
        i
        for i, layer in enumerate(model.network.layers)
        if layer.state_dict() and i >= linear[freeze]
    }
    assert changed == learnt


def test_synchronised_batch_norm_of_a_frozen_layer_keeps_its_mean(make_model: MakeModel) -> None:
    model = make_model(hidden_dims=[8, 6], freeze=1, batch_norm=True)
    # as the Trainer's sync_batchnorm does after the model was made
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.frozen.eval_batch_norm()
    norms = [each for each in model.network.layers if isinstance(each, nn.SyncBatchNorm)]
    assert [each.training for each in norms] == [False, True]


def test_a_new_head_is_trained_on_the_layers_of_another_run(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.data_dir", data_dir, "--trainer.max_epochs", "1"]
    first = FNNCLI(["fit", *words, "--model.hidden_dims", "[8]"])
    new = ["--init_from", LAST, "--model.hidden_dims", "[8, 6]", "--model.freeze", "1"]
    capsys.readouterr()
    second = FNNCLI(["fit", *words, *new])
    out = capsys.readouterr().out
    assert "784–8; new: 8–6, 6–10" in out
    assert "6,404 parameters, 124 of them trained" in out
    ours, theirs = second.model.network.layers[0], first.model.network.layers[0]
    assert torch.equal(ours.weight, theirs.weight)
    last = LAST.replace("version_0", "version_1")
    resumed = FNNCLI(["fit", "--ckpt_path", last, "--trainer.max_epochs", "2"])
    assert torch.equal(resumed.model.network.layers[0].weight, theirs.weight)
    heads = [cli.model.network.layers[2].weight for cli in (second, resumed)]
    assert not torch.equal(*heads)


@pytest.mark.parametrize("freeze", [-1, 2])
def test_one_layer_at_least_is_trained(make_model: MakeModel, freeze: int) -> None:
    with pytest.raises(InputError, match=rf"from 0 to 1, .* 2 layers is trained, but got {freeze}"):
        make_model(hidden_dims=[8], freeze=freeze)
