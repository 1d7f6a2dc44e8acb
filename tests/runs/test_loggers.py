"""A run's folder is its own, whatever else logs the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.training.checkpointing import RunCheckpoint
from tests.support import LAST, RUN, fit, scalars, trainer

MakeData = Callable[..., MNISTDataModule]
TRACKER = ["--trainer.logger", "tests.runs.test_loggers.Tracker"]


class Tracker(Logger):
    """Has one folder for all its runs, the working folder, as WandbLogger and MLFlowLogger have."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "tracker"

    @property
    def version(self) -> str:
        return "abc"

    @property
    def save_dir(self) -> str:
        return "."

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.logged |= {"hyperparameters": len(params)}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged |= metrics


def step_of(path: Path | str) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_two_runs_with_a_tracker_have_two_folders(data_dir: str) -> None:
    Path("config.yaml").write_text("trainer:\n  max_epochs: 1\n")
    for seed in ("0", "1"):
        words = ["--model.hidden_dims=[8]", "--data.data_dir", data_dir, "--seed_everything", seed]
        cli = FNNCLI(["fit", "--config", "config.yaml", *TRACKER, *words])
        (_, tracker) = cli.trainer.loggers
        assert {"hyperparameters", "val/acc", "train/loss"} <= tracker.logged.keys()  # type: ignore[attr-defined]
    assert Path("config.yaml").read_text() == "trainer:\n  max_epochs: 1\n"
    for number in (0, 1):
        run = Path(f"lightning_logs/version_{number}")
        assert f"seed_everything: {number}\n" in (run / "config.yaml").read_text()
        assert {"metrics.json", "loss.png"} <= {path.name for path in run.iterdir()}
        assert "val/acc" in scalars(str(run))
        assert step_of(run / "checkpoints" / "last.ckpt") == 3
    assert not Path("checkpoints").exists()
    assert not Path("metrics.json").exists()


def test_a_run_folder_starts_and_resumes_beside_a_tracker(data_dir: str) -> None:
    command = ["fit", "--run_folder", "job", *TRACKER, "--model.hidden_dims=[8]"]
    command += ["--data.data_dir", data_dir, "--trainer.max_epochs"]
    main([*command, "1"])
    main([*command, "2"])
    assert step_of("job/checkpoints/last.ckpt") == 6
    assert [step for step, _ in scalars("job")["val/acc"]] == [3, 6]
    assert not Path("lightning_logs").exists()


def test_the_folder_of_something_else_is_refused(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("trainer: {max_epochs: 1}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "mine/config.yaml", "--run_folder", "mine"])
    assert "mine holds config.yaml of something else" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["config.yaml"]
    assert Path("mine/config.yaml").read_text() == "trainer: {max_epochs: 1}\n"
    Path("mine/events.out.tfevents").touch()  # as another project's run has it
    with pytest.raises(SystemExit):
        main(["fit", "--config", "mine/config.yaml", "--run_folder", "mine"])
    assert Path("mine/config.yaml").read_text() == "trainer: {max_epochs: 1}\n"
    Path("report").mkdir()
    Path("report/report.html").write_text("mine")
    with pytest.raises(SystemExit):
        main(["fit", "--run_folder", "report"])
    assert "report holds report.html of something else" in capsys.readouterr().err
    Path("mine/config.yaml").rename("mine/notes.txt")
    fit(data_dir, "--run_folder", "mine")  # as where a job's own log lies
    assert Path("mine/notes.txt").read_text() == "trainer: {max_epochs: 1}\n"


@pytest.mark.parametrize("logger", [Tracker, lambda: False, lambda: CSVLogger("csv")])
def test_from_python_no_run_replaces_the_checkpoints_of_another(
    make_data: MakeData, logger: Callable[[], Any]
) -> None:
    paths = []
    for epochs in (1, 2):
        callback = RunCheckpoint()
        run = trainer(Path(), max_epochs=epochs, callbacks=[callback], logger=logger())
        run.fit(FNNLitModule(hidden_dims=[4]), datamodule=make_data())
        paths.append(callback.last_model_path)
    assert [step_of(path) for path in paths] == [3, 6]


def test_from_python_a_folder_with_checkpoints_is_resumed_or_refused(make_data: MakeData) -> None:
    def run(epochs: int, callback: RunCheckpoint, ckpt_path: Any = None) -> None:
        logger = TensorBoardLogger(".", "logs", version="same")
        one = trainer(Path(), max_epochs=epochs, callbacks=[callback], logger=logger)
        one.fit(FNNLitModule(hidden_dims=[4]), datamodule=make_data(), ckpt_path=ckpt_path)

    first = RunCheckpoint()
    run(1, first)
    before = Path(first.last_model_path).read_bytes()
    with pytest.raises(InputError, match=r"holds last\.ckpt of another"):
        run(1, RunCheckpoint())
    Path("copy.ckpt").write_bytes(before)
    with pytest.raises(InputError, match=r"holds last\.ckpt of another"):
        run(2, RunCheckpoint(), "copy.ckpt")
    assert Path(first.last_model_path).read_bytes() == before
    run(2, RunCheckpoint(), first.last_model_path)
    assert step_of(first.last_model_path) == 6
    one = trainer(Path(), max_epochs=1, callbacks=[RunCheckpoint()])
    for _ in range(2):  # its own
        one.fit(FNNLitModule(hidden_dims=[4]), datamodule=make_data())


def test_a_refused_resume_hides_nothing_in_tensorboard(data_dir: str) -> None:
    schedule = ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "0"]
    fit(data_dir, *schedule, "--checkpoint.monitor", "val/acc")
    before = scalars(str(RUN))
    early = torch.load(LAST, weights_only=True)
    early["global_step"] = 3  # later points would be dropped
    torch.save(early, Path(LAST).with_name("early.ckpt"))
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", str(Path(LAST).with_name("early.ckpt")),
              "--trainer.max_epochs", "5"])  # fmt: skip
    assert scalars(str(RUN)) == before
