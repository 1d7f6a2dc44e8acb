import itertools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.errors import InputError
from fnn_lightning.training import multi_step, threads
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.metrics import TrainMetrics
from fnn_lightning.training.multi_step import MultiStep
from fnn_lightning.training.threads import Threads
from tests.forks import StartFork
from tests.support import assert_same, ended, fit, refused, trainer


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of(path: Path | str) -> int:
    states = torch.load(path, weights_only=True)["callbacks"]
    return int(states["Threads"]["count"])


def seen_by(module: FNNLitModule) -> list[int]:
    seen: list[int] = []
    forward = module.network.forward

    def watch(images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(images)

    module.network.forward = watch  # type: ignore[method-assign, assignment]
    return seen


@pytest.mark.parametrize(
    ("hidden_dims", "batch_size", "expected"),
    [
        ([100], 100, 1),  # 48 million operations a step
        ([500], 100, 2),  # 238 million
        ([500], 150, 3),  # 357 million
        ([4000], 150, 4),  # more than there are threads for
    ],
)
def test_the_work_of_a_step_chooses_the_number(
    hidden_dims: list[int], batch_size: int, expected: int, data_dir: str, tmp_path: Path
) -> None:
    module = FNNLitModule(hidden_dims=hidden_dims)
    seen = seen_by(module)
    data = MNISTDataModule(data_dir=data_dir, batch_size=batch_size)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 4, "the process keeps its own"
    seen.clear()
    run.validate(module, datamodule=data, verbose=False)
    run.test(module, datamodule=data, verbose=False)
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 4


def test_the_cores_limit_the_number(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    module = FNNLitModule(hidden_dims=[4000])
    seen = seen_by(module)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=MNISTDataModule(data_dir=data_dir))
    assert set(seen) == {1}


def test_the_option_is_kept_by_the_checkpoint_and_by_resuming(
    data_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    net = ["--model.batch_norm=true", "--run_folder", run]
    fit(data_dir, *net, "--model.num_threads", "3", "--trainer.max_epochs", "1")
    assert "cpu, 3 threads" in capsys.readouterr().out
    last = f"{run}/checkpoints/last.ckpt"
    assert threads_of(last) == 3
    # neither the option nor this machine's cores
    fit(data_dir, *net, "--model.num_threads=null", "--trainer.max_epochs", "2")
    assert "cpu, 3 threads" in capsys.readouterr().out
    assert threads_of(last) == 3
    with pytest.warns(UserWarning, match="began with 3 threads and is resumed with 2"):
        fit(data_dir, *net, "--model.num_threads=2", "--trainer.max_epochs", "3")
    assert threads_of(last) == 2


def test_an_error_gives_the_threads_back(data_dir: str, tmp_path: Path) -> None:
    module = FNNLitModule(num_threads=2)
    module.network.forward = lambda images: images / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(Exception):  # noqa: B017, PT011
        trainer(tmp_path).fit(module, datamodule=MNISTDataModule(data_dir=data_dir))
    assert torch.get_num_threads() == 4


def test_no_number_is_refused(data_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="`num_threads` to be 1 or more, or None, but got"):
            FNNLitModule(num_threads=wrong)  # type: ignore[arg-type]
    words = ["fit", "--data.data_dir", data_dir, "--model.num_threads", "0"]
    assert "`num_threads` to be 1 or more" in refused(words, capsys)


def any_counts(counts: list[int]) -> Generator[int, tuple[float, int], None]:
    """Yield in turn what `fastest_counts` may find."""
    assert set(counts) <= {1, 2, 4}
    for step in itertools.count():
        yield counts[step % len(counts)]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Vary the number at every step of the plain loop, and return those it was taken with."""
    monkeypatch.setattr(threads, "fastest_counts", any_counts)
    monkeypatch.setattr(multi_step, "MAX_SECONDS", 0)
    seen: list[int] = []
    take_steps = MultiStep._take_steps
    update = TrainMetrics.update

    def watch(self: MultiStep, *args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TrainMetrics, "update", count)
            take_steps(self, *args)

    def count(self: TrainMetrics, *args: Any) -> None:
        seen.append(torch.get_num_threads())
        update(self, *args)

    monkeypatch.setattr(MultiStep, "_take_steps", watch)
    return seen


class Elsewhere(Callback):
    """Sees the number of threads outside the plain loop."""

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.seen.add(torch.get_num_threads())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seen.add(torch.get_num_threads())


RECIPES: dict[str, dict[str, Any]] = {
    "relu": {"model": {"hidden_dims": [300]}},
    "sigmoid": {"model": {"hidden_dims": [640, 70], "activation": "sigmoid"}},
    "mish": {
        "model": {"hidden_dims": [640], "activation": "mish"},
        "data": {"class_weights": "balanced"},
    },
    "mnist": {
        "model": {
            "hidden_dims": [512],
            "activation": "gelu",
            "batch_norm": True,
            "dropout": 0.1,
            "input_dropout": 0.2,
            "label_smoothing": 0.05,
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01, "fused": True}},
        },
        "callbacks": [EMA],
    },
    "record": {
        "model": {
            "hidden_dims": [640, 64],
            "activation": "gelu",
            "keep_hardest": 0.5,
            "adversarial_radius": 0.5,
            "adversarial_steps": 2,
            "matmul_precision": "medium",
        },
        "data": {"augmentation": Augmentation(rotation=10, elastic=1, end=0.9)},
        "callbacks": [EMA],
    },
    "frozen": {"model": {"hidden_dims": [640, 512], "batch_norm": True, "freeze": 1}},
    "in evaluation mode": {"model": {"hidden_dims": [512], "batch_norm": True}},
    "taught": {"model": {"hidden_dims": [300], "teachers": ["teacher.ckpt"]}},
}


@pytest.fixture
def weights(
    steps: list[int], data_dir: str, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], set[int]]]:
    """Return what trains a recipe.

    It returns weights and losses, and the numbers of threads outside the steps of the plain loop.
    """

    def train(num_threads: int | None, recipe: dict[str, Any]) -> tuple[dict[str, Any], set[int]]:
        steps.clear()
        seed_everything(0)
        module = FNNLitModule(num_threads=num_threads, **recipe.get("model", {}))
        if recipe is RECIPES["in evaluation mode"]:
            module.network.eval()
        data = MNISTDataModule(data_dir=data_dir, **{"batch_size": 64, **recipe.get("data", {})})
        elsewhere = Elsewhere()
        given = [elsewhere, *(average(0.9) for average in recipe.get("callbacks", []))]
        run = trainer(tmp_path, max_epochs=6, num_sanity_val_steps=0, callbacks=given)
        run.fit(module, datamodule=data)
        assert torch.get_num_threads() == 4, "the process keeps its own"
        return {"losses": module.train_metrics.losses(), **module.state_dict()}, elsewhere.seen

    return train


@pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
@pytest.mark.parametrize("name", RECIPES)
def test_steps_vary_the_number_and_keep_the_bits(
    name: str,
    steps: list[int],
    weights: Callable[..., tuple[dict[str, Any], set[int]]],
    data_dir: str,
    tmp_path: Path,
) -> None:
    if name == "taught":
        teaching = trainer(tmp_path, max_epochs=1)
        data = MNISTDataModule(data_dir=data_dir)
        teaching.fit(FNNLitModule(hidden_dims=[640], activation="mish"), datamodule=data)
        teaching.save_checkpoint("teacher.ckpt")
    varied, elsewhere = weights(None, RECIPES[name])
    assert set(steps) == {1, 2, 4}
    assert elsewhere == {4}
    fixed, elsewhere = weights(1, RECIPES[name])
    assert_same(varied, fixed)
    assert set(steps) == elsewhere == {1}


def test_the_number_is_fixed_where_the_bits_depend_on_it(
    steps: list[int],
    weights: Callable[..., tuple[dict[str, Any], set[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # an activation that is divided among threads, and rounds by place
    mish = {"hidden_dims": [800], "activation": "mish"}
    weights(None, {"model": mish, "data": {"batch_size": 63}})
    assert set(steps) == {2}
    # an optimiser of which nobody knows
    weights(None, {"model": {"optimizer": {"class_path": "RAdam", "init_args": {"lr": 0.01}}}})
    assert set(steps) == {1}
    # a loss of so many images that their sum is divided
    monkeypatch.setattr(threads, "GRAIN_SIZE", 63)
    weights(None, {"model": {"hidden_dims": [300]}})
    assert set(steps) == {1}


def test_a_hook_on_the_optimizer_fixes_the_number(
    steps: list[int], data_dir: str, tmp_path: Path
) -> None:
    class Hook(Callback):
        acts_every_n_steps = 0

        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 3:
                trainer.optimizers[0].register_step_post_hook(lambda *_: None)
                assert set(steps) == {1, 2, 4}
                steps.clear()

    data = MNISTDataModule(data_dir=data_dir, batch_size=60)
    module = FNNLitModule(hidden_dims=[300])
    trainer(tmp_path, max_epochs=5, callbacks=[Hook()]).fit(module, datamodule=data)
    assert set(steps) == {4}


def test_a_checkpoint_that_does_not_say_so_has_a_fixed_number() -> None:
    resumed = Threads()
    resumed.load_state_dict({"count": 3})
    assert resumed.state_dict() == {"count": 3, "varies": False}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # another run's checkpoint
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_resumed_run_varies_the_number_as_far_as_it_may(
    steps: list[int], sanity: int, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(epochs: int, num_threads: int | None = None, resume: str | None = None) -> str:
        steps.clear()
        elsewhere.seen.clear()
        folder = tmp_path / str(epochs)
        kept = ModelCheckpoint(folder, save_last=True)
        run = trainer(
            tmp_path,
            max_epochs=epochs,
            num_sanity_val_steps=sanity,
            logger=False,
            callbacks=[elsewhere, kept],
        )
        module = FNNLitModule(hidden_dims=[300], num_threads=num_threads)
        data = MNISTDataModule(data_dir=data_dir, batch_size=60)
        run.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        return str(folder / "last.ckpt")

    elsewhere = Elsewhere()
    with monkeypatch.context() as patch:
        patch.setattr(threads, "OPTIMIZERS", ())
        fixed = fit(2)
        assert set(steps) == {1}
    fit(4, resume=fixed)
    assert set(steps) == {1}, "a run that began with a fixed number keeps it"
    varied = fit(3)
    assert set(steps) == {1, 2, 4}
    torch.set_num_threads(1)  # resumed on one core
    fit(5, resume=varied)
    assert set(steps) == {1}
    assert 4 in elsewhere.seen
    # no warning, which would be an error here: no bit changes
    fit(6, resume=varied, num_threads=2)
    assert set(steps) == {2}
    monkeypatch.setattr(threads, "counts_with_same_bits", lambda *_, **__: [1, 4])
    with pytest.warns(UserWarning, match="began with 4 threads and is resumed with 2"):
        fit(7, resume=varied, num_threads=2)
    assert set(steps) == {2}


needs_two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, and Linux to give a process one of them",
)


def run_on(
    cores: int, fork: StartFork, folder: str, data_dir: str, *options: str
) -> tuple[dict[str, Any], str]:
    """Train in a process bound to so many cores; return its last checkpoint and what it printed."""
    words = ["fit", "--data.data_dir", data_dir, "--run_folder", folder, *options]
    bound = sorted(os.sched_getaffinity(0))[:cores]
    bind = (
        f"import os, torch; os.sched_setaffinity(0, {bound}); del os.environ['OMP_NUM_THREADS']; "
        # as PyTorch does when it is imported, which came earlier here
        f"torch.set_num_threads({cores})"
    )
    status, printed, err = ended(fork(*words, before=bind))
    assert status == 0, err
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True), printed


@needs_two_cores
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumed_on_other_cores_ends_with_the_same_bits(
    first: int,
    data_dir: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # the activations of a layer are divided among threads, at a number that is not round
    net = ["--model.hidden_dims=[400,300]", "--data.batch_size=133", "--model.activation=mish"]
    net += ["--model.dropout=0.1", "--tensorboard.enabled=false"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    bound = os.sched_getaffinity(0)

    def run(cores: int, name: str, epochs: int, count: int) -> dict[str, Any]:
        os.sched_setaffinity(0, sorted(bound)[:cores])
        try:
            fit(data_dir, *net, "--run_folder", name, "--trainer.max_epochs", str(epochs))
        finally:
            os.sched_setaffinity(0, bound)
        last = Path(name) / "checkpoints" / "last.ckpt"
        checkpoint: dict[str, Any] = torch.load(last, weights_only=True)
        assert f"cpu, {count} thread" in capsys.readouterr().out
        assert checkpoint["callbacks"]["Threads"]["count"] == count
        return checkpoint

    other = 3 - first
    whole = run(first, "whole", 4, first)
    run(first, "resumed", 2, first)
    resumed = run(other, "resumed", 4, first)
    assert_same(resumed["state_dict"], whole["state_dict"])
    assert_same(resumed["optimizer_states"], whole["optimizer_states"])
    if first == 1:
        weights = "network.layers.0.weight"
        different = run(other, "other", 4, other)
        assert not torch.equal(different["state_dict"][weights], whole["state_dict"][weights]), (
            "the number of threads changes no bit here: this shows nothing"
        )


@needs_two_cores
@pytest.mark.parametrize(
    "net",
    [
        ["--model.hidden_dims=[400,300]", "--data.batch_size=137"],
        ["--config=mnist", "--data.batch_size=64"],
    ],
)
def test_a_run_has_the_same_bits_on_any_cores(
    net: list[str], data_dir: str, fork: StartFork
) -> None:
    net = [*net, "--trainer.max_epochs=4"]
    one, printed = run_on(1, fork, "one", data_dir, *net)
    assert "cpu, 1 thread," in printed
    two, printed = run_on(2, fork, "two", data_dir, *net)
    assert "cpu, up to 2 threads," in printed, printed
    assert_same(one["state_dict"], two["state_dict"])
