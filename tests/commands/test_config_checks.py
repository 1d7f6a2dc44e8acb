import re
import shutil
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.main import main
from tests.support import LAST, RUN, fit, refused

Capture = pytest.CaptureFixture[str]


def test_resuming_keeps_what_defines_the_run(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1")
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    changes = {
        "--data.dataset digits": "`data.dataset` to be mnist, with which the run began, but got",
        "--data.val_size 0": "`data.val_size` to be null",
        "--data.folds 5 --data.fold 1": "`data.folds` to be null, .* but got 5",
        "--data.train_size 99": "`data.train_size` to be null, .* but got 99",
        "--data.batch_size 50": "`data.batch_size` to be 100",
        "--data.augmentation.shift 1": "`data.augmentation.shift` to be 0.0, .* but got 1.0",
        "--seed_everything 1": "`seed_everything` to be 0",
        "--model.hidden_dims [9]": r"`model.hidden_dims` to be \[8\], .* but got \[9\]",
        "--model.activation tanh": "`model.activation` to be relu",
        "--model.dropout 0.1": "`model.dropout` to be 0.0",
        "--model.label_smoothing 0.1": "`model.label_smoothing` to be 0.0",
        "--model.lr_interval step": "`model.lr_interval` to be epoch",
        "--model.warmup 2": "`model.warmup` to be 0.0",
        "--ema.decay 0.9": "`ema.decay` to be 0.0",
        "--optimizer.lr 0.01": "`optimizer.lr` to be 0.1",
        "--optimizer Adam": "`optimizer` to be SGD, .* but got Adam",
        "--lr_scheduler null": "`lr_scheduler` to be StepLR, .* but got null",
        "--lr_scheduler.step_size 2": "`lr_scheduler.step_size` to be 1",
        "--trainer.accumulate_grad_batches 2": "`trainer.accumulate_grad_batches` to be 1",
        "--model.matmul_precision medium": "`model.matmul_precision` to be null, .* but got medium",
        "--model.compile true": "`model.compile` to be False",
        "--trainer.precision bf16-mixed": "`trainer.precision` to be null",
    }
    capsys.readouterr()
    for words, message in changes.items():
        resume = ["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "3", *words.split()]
        error = refused(resume, capsys)
        assert re.search(message, error), error
        assert error.endswith(f"to start it from these weights, give --init_from {LAST}\n")
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
    # where the data lie and how fast the steps are taken is no part of the result
    shutil.copytree(data_dir, "elsewhere")
    resume = ["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "3"]
    main([*resume, "--data.data_dir", "elsewhere", "--model.multi_step", "false"])
    assert torch.load(LAST, weights_only=True)["global_step"] == 9


def test_a_run_of_an_earlier_version_resumes_as_it_began(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(data_dir)
    checkpoint = torch.load(LAST, weights_only=True)
    data = checkpoint["datamodule_hyper_parameters"]
    for name in (
        "folds",
        "fold",
        "train_size",
        "class_weights",
        "framing",
    ):  # which it did not have
        del data[name]
    del data["augmentation"]["end"], checkpoint["hyper_parameters"]["freeze"]
    del checkpoint["hyper_parameters"]["adversarial_radius"]
    del checkpoint["hyper_parameters"]["adversarial_steps"]
    del checkpoint["hyper_parameters"]["matmul_precision"]
    for state in checkpoint["callbacks"]["TrainLog"]["ranks"]:
        del state["offset"]
    torch.save(checkpoint, LAST)
    capsys.readouterr()
    resume = ["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "3"]
    for option, value, was in (
        ("data.train_size", "50", "null"),
        ("data.class_weights", "balanced", "null"),
        ("data.framing", "resize", "null"),
        ("data.augmentation.end", "0.5", "1.0"),
        ("model.freeze", "1", "0"),
        ("model.adversarial_radius", "1", "0.0"),
        ("model.adversarial_steps", "2", "1"),
        ("model.matmul_precision", "medium", "null"),
    ):
        error = refused([*resume, f"--{option}", value], capsys)
        assert f"Expected `{option}` to be {was}, with which the run began" in error
    main(resume)
    assert torch.load(LAST, weights_only=True)["global_step"] == 9


def test_a_run_cannot_become_shorter_than_it_is(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(data_dir, "--trainer.max_epochs", "3")
    capsys.readouterr()
    error = refused(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "1"], capsys)
    assert "`trainer.max_epochs` to be 3 or more, since the checkpoint is of epoch 3" in error


def test_a_checkpoint_from_python_resumes_with_the_defaults_of_its_optimizer(
    data_dir: str,
) -> None:
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **quiet)
    module = FNNLitModule(hidden_dims=[8], optimizer=adam)
    trainer.fit(module, datamodule=MNISTDataModule(data_dir=data_dir))
    trainer.save_checkpoint("python.ckpt")
    main(["fit", "--ckpt_path", "python.ckpt", "--trainer.max_epochs", "2"])
    assert torch.load(LAST, weights_only=True)["global_step"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("EarlyStopping --trainer.callbacks.monitor val/loss --data.val_size 0", "would select by"),
        (
            "ModelCheckpoint --trainer.callbacks.monitor val/loss --data.val_size 0",
            "would select by",
        ),
        (
            "EarlyStopping --trainer.callbacks.monitor val/loss --data.val_size 0 --data.folds 5 "
            "--data.fold 0",
            "either `folds` or `val_size`",
        ),
        ("EarlyStopping --trainer.callbacks.monitor val/acc", "`mode` of EarlyStopping to be max"),
        ("ModelCheckpoint --trainer.callbacks.monitor val/acc", "`mode` of ModelCheckpoint to be"),
        ("LearningRateFinder", "Expected --find_lr true, but got LearningRateFinder"),
        ("BatchSizeFinder", "Expected --data.batch_size, but got BatchSizeFinder"),
    ],
)
def test_callbacks_that_select_wrongly_are_refused(
    data_dir: str, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    command = ["fit", "--data.data_dir", data_dir, "--trainer.callbacks", *words.split()]
    assert message in refused(command, capsys)
