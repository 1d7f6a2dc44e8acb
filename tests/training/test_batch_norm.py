from collections.abc import Callable
from pathlib import Path

import pytest

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.errors import InputError
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def test_batch_norm_refuses_a_batch_of_one_image(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    # 275 images: one is left over
    with pytest.raises(InputError, match="but got 1 in an epoch's last batch on 1 rank:"):
        trainer(tmp_path).fit(make_model(batch_norm=True), datamodule=make_data(batch_size=137))
    fewer = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    fewer.fit(make_model(batch_norm=True), datamodule=make_data(batch_size=137))
    assert fewer.global_step == 2
    few = make_model(batch_norm=True, keep_hardest=0.04)  # of the 25 images of every batch
    with pytest.raises(InputError, match=r"last batch, of which the hardest 0\.04 are kept, on 1"):
        trainer(tmp_path).fit(few, datamodule=make_data(batch_size=25))
