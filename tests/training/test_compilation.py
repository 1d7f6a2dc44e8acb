"""A compiled network trains, and its checkpoints do not show that it was compiled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.runs.load import load_trained
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.ema import EMA
from tests.support import assert_same, trainer, why_single_steps

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def compile_around(module: FNNLitModule) -> None:
    module.network = torch.compile(module.network, backend="eager")  # type: ignore[assignment]


def compile_in_place(module: FNNLitModule) -> None:
    module.network.compile(backend="eager")


def compile_a_layer(module: FNNLitModule) -> None:
    module.network.layers[0] = torch.compile(module.network.layers[0], backend="eager")  # type: ignore[assignment]


COMPILE = [compile_around, compile_in_place, compile_a_layer]


def train(
    folder: Path, module: FNNLitModule, data: MNISTDataModule, epochs: int = 3, **fit: Any
) -> tuple[Trainer, dict[str, Any]]:
    module.num_threads = 1  # which varies unless the network is compiled
    callbacks = [EMA(0.9), RunCheckpoint(monitor="val/acc")]
    run = trainer(folder, callbacks=callbacks, max_epochs=epochs)
    run.fit(module, datamodule=data, **fit)
    return run, torch.load(f"{run.log_dir}/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize("how", COMPILE)
def test_checkpoints_are_those_of_a_network_that_was_not_compiled(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, how: Callable[[FNNLitModule], None]
) -> None:
    _, expected = train(tmp_path / "plain", make_model(), make_data(batch_size=40))
    compiled = make_model()
    how(compiled)
    run, last = train(tmp_path / "compiled", compiled, make_data(batch_size=40))
    assert why_single_steps(run) is None
    assert_same(last, expected)
    path = f"{run.log_dir}/checkpoints/last.ckpt"
    weights = load_trained(path).module.network.state_dict()
    for name, weight in weights.items():
        assert torch.equal(weight, expected["state_dict"][f"network.{name}"])
    # from the file into the compiled network
    with torch.no_grad():
        for parameter in compiled.parameters():
            parameter.zero_()
    before = run.callback_metrics["val/loss"]
    (after,) = run.validate(compiled, make_data(), ckpt_path=path, verbose=False)
    assert after["val/loss"] == pytest.approx(float(before))


@pytest.mark.parametrize("first", [None, *COMPILE])
def test_a_run_resumes_exactly_whether_compiled_or_not(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    first: Callable[[FNNLitModule], None] | None,
) -> None:
    _, expected = train(tmp_path / "whole", make_model(), make_data(), epochs=4)
    begun, resumed = make_model(), make_model()
    (first or compile_around)(resumed if first is None else begun)
    run, _ = train(tmp_path / "begun", begun, make_data(), epochs=2)
    path = f"{run.log_dir}/checkpoints/last.ckpt"
    _, last = train(tmp_path / "resumed", resumed, make_data(), epochs=4, ckpt_path=path)
    assert_same(last, expected)


def test_a_compiled_module_is_refused_in_favour_of_its_network(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    module = make_model()
    around: Any = torch.compile(module, backend="eager")
    with pytest.raises(InputError, match=r"give --model.compile true .*compile=True"):
        trainer(tmp_path / "run").fit(around, datamodule=make_data())
    assert not (tmp_path / "run").exists()
    trainer(tmp_path).fit(module, datamodule=make_data())  # is not compiled any more


def test_the_command_line_compiles_for_batches_of_any_size(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    in_place = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **kwargs: in_place(self, backend=count, **kwargs)
    )
    # batches of 70, 70, 70, 65 and 25 images
    options = ["--data.batch_size", "70", "--model.hidden_dims", "[8]", "--trainer.max_epochs", "2"]
    fit = ["fit", "--data.data_dir", data_dir, *options]
    main([*fit, "--run_folder", "compiled", "--model.compile", "true"])
    assert len(graphs) == 2  # for training and for validation
    main([*fit, "--run_folder", "plain"])
    assert len(graphs) == 2
    last = [
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)
        for run in ("compiled", "plain")
    ]
    for each in last:  # steps of a compiled net do not vary it
        assert each["callbacks"].pop("Threads")["count"] == 1
    assert_same(*last)
    assert "compile" not in last[0]["hyper_parameters"]
    main(["test", "--ckpt_path", "compiled/checkpoints/last.ckpt"])
    assert len(graphs) == 2
    torch.compiler.reset()
    main(["fit", "--ckpt_path", "compiled/checkpoints/last.ckpt", "--trainer.max_epochs", "3"])
    assert len(graphs) == 4


def test_without_a_compiler_there_is_one_clear_line(
    data_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--data.data_dir", data_dir, "--model.compile", "true"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Expected a C++ compiler that torch.compile can use, but got ")
    assert "no-such-compiler" in error
    assert error.endswith("install one, or drop --model.compile")
