"""Training steps alone multiply matrices as `matmul_precision` says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.training import post_hoc
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.multi_step import MultiStep
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


class Watched(FNNLitModule):
    """Notes the precision of each kind of step, at its forward and its backward pass."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"hidden_dims": [8], "multi_step": False, **kwargs})
        self.seen: set[tuple[str, str]] = set()

    def note(self, when: str) -> None:
        self.seen.add((when, torch.get_float32_matmul_precision()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.note("training")
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.note("backward")

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        self.note("validation")
        return super().validation_step(batch, batch_idx)

    def test_step(self, *args: Any) -> dict[str, Tensor]:
        self.note("test")
        return super().test_step(*args)


@pytest.mark.parametrize(
    ("given", "process", "training"),
    [("medium", "highest", "medium"), ("highest", "high", "highest"), (None, "high", "high")],
)
def test_training_alone_is_less_exact(
    make_data: MakeData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: Any,
    process: str,
    training: str,
) -> None:
    torch.set_float32_matmul_precision(process)
    module = Watched(matmul_precision=given)
    fit_post_hoc = post_hoc.fit_post_hoc

    def fitted(*args: Any) -> Any:  # what a checkpoint holds beside its weights
        module.note("post hoc")
        return fit_post_hoc(*args)

    monkeypatch.setattr(post_hoc, "fit_post_hoc", fitted)
    run = trainer(
        tmp_path,
        callbacks=[RunCheckpoint()],
        enable_checkpointing=True,
        num_sanity_val_steps=1,
        val_check_interval=2,
    )
    run.fit(module, datamodule=make_data(batch_size=50))
    run.validate(module, datamodule=make_data(), verbose=False)
    module.note("afterwards")
    run.test(module, datamodule=make_data(), verbose=False)
    assert module.seen == {
        ("training", training),
        ("backward", training),
        *((when, process) for when in ("validation", "post hoc", "afterwards", "test")),
    }


def test_several_steps_at_once_are_as_exact(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    take_steps = MultiStep._take_steps

    def watched(self: MultiStep, *args: Any) -> Any:
        seen.add(torch.get_float32_matmul_precision())
        return take_steps(self, *args)

    monkeypatch.setattr(MultiStep, "_take_steps", watched)
    module = FNNLitModule(hidden_dims=[8], matmul_precision="medium")
    trainer(tmp_path).fit(module, datamodule=make_data(batch_size=50))
    assert seen == {"medium"}


def test_an_error_leaves_the_process_as_it_was(make_data: MakeData, tmp_path: Path) -> None:
    class Breaks(Watched):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            assert torch.get_float32_matmul_precision() == "medium"
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path).fit(Breaks(matmul_precision="medium"), datamodule=make_data())
    assert torch.get_float32_matmul_precision() == "highest"


def test_both_interfaces_of_torch_are_not_mixed(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(precision: str) -> None:
        raise RuntimeError("a mix of the legacy and new APIs")

    module = Watched(matmul_precision="medium")
    message = "to be None where .* but got medium: a mix"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_float32_matmul_precision", refuse)
        with pytest.raises(InputError, match=message):
            trainer(tmp_path).fit(module, datamodule=make_data())


@pytest.mark.parametrize("given", ["low", "", 1])
def test_other_words_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="`matmul_precision` to be highest, high or medium, or"):
        FNNLitModule(matmul_precision=given)
