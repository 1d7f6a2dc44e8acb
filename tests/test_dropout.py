from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.dropout import Dropout
from fnn_lightning.network import FNN
from tests.support import assert_same, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.2, 0.3 / 256, 0.5, 0.999])
def test_a_value_stays_with_its_probability_and_is_scaled_by_it(p: float) -> None:
    torch.manual_seed(0)
    count = 4_000_000
    kept = Dropout(p)(torch.ones(count // 1000, 1000)).double()
    stays = 1 - round(p * 65536) / 65536
    # five standard deviations; 1/256 of a step in the probability is several times as much
    bound = 5 * (p * (1 - p) / count) ** 0.5
    assert (kept != 0).double().mean().item() == pytest.approx(stays, abs=bound)
    assert kept[kept != 0].unique().tolist() == pytest.approx([1 / stays], rel=1e-6)
    # in each of the four parts of a word, and independently
    parts = (kept.view(-1, 4) != 0).double()
    assert parts.mean(0).tolist() == pytest.approx([stays] * 4, abs=2 * bound)
    correlations = parts.T.corrcoef() - torch.eye(4)
    assert correlations.abs().max() < 10 / count**0.5


def test_the_gradient_is_the_mask() -> None:
    layer, x = Dropout(0.3), torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.backward(weights := torch.rand_like(y))
    expected = torch.where(y == 0, 0, weights / (1 - 19661 / 65536))
    torch.testing.assert_close(x.grad, expected)
    assert (y == 0).any()
    assert (y != 0).any()
    assert not layer(x.detach()).requires_grad
    assert layer(x.detach().bfloat16()).dtype == torch.bfloat16
    assert layer.eval()(x) is x


def test_a_probability_that_rounds_to_one_keeps_numbers_finite() -> None:
    assert Dropout(0.9999999)(torch.ones(1000, 1000)).isfinite().all()
    assert torch.equal(Dropout(0.0)(torch.ones(9, 9)), torch.ones(9, 9))


def masks(seed: tuple[int, ...], total: int, rows: Any, own: int) -> list[Tensor]:
    """Return what the dropout of two layers makes of ones, in a batch of so many images."""
    network = FNN(21, [33], 3, dropout=0.4, input_dropout=0.4)
    source = network.mask_source
    assert source is not None
    with source.seeded(seed, CPU, total, rows):
        return [network.layers[i](torch.ones(own, width)) for i, width in ((0, 21), (3, 33))]


def test_ranks_take_their_rows_of_the_same_masks() -> None:
    whole = masks((7, 1, 3), 11, slice(None), 11)
    for ranks in (2, 3, 20):
        for rank in range(ranks):
            share = slice(rank, 11, ranks)
            own = masks((7, 1, 3), 11, share, len(range(11)[share]))  # of 20, nine have none
            assert_same(own, [each[share] for each in whole])
    chosen = torch.tensor([1, 4, 10])
    assert_same(masks((7, 1, 3), 11, chosen, 3), [each[chosen] for each in whole])


def test_masks_differ_between_layers_steps_epochs_and_seeds() -> None:
    drawn = [
        mask[:, :21]
        for seed in ((0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1))
        for mask in masks(seed, 40, slice(None), 40)
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            # as many agree as by chance, 0.4² + 0.6²
            assert (one == other).double().mean().item() == pytest.approx(0.52, abs=0.09)


def test_a_network_alone_draws_from_the_global_generator() -> None:
    network, pixels = FNN(hidden_dims=[8], dropout=0.5), torch.rand(3, 784)
    state = torch.get_rng_state()
    first, second = network(pixels), network(pixels)
    torch.set_rng_state(state)
    assert torch.equal(network(pixels), first)
    assert not torch.equal(first, second)
    # as it was, after a step that was seeded
    source = network.mask_source
    assert source is not None
    with source.seeded((0, 0, 1), CPU, 3, slice(None)):
        assert not torch.equal(network(pixels), second)
    assert torch.equal(network(pixels), second)


def test_any_number_of_threads_draws_the_same_masks() -> None:
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            drawn.append(Dropout(0.3)(torch.ones(500, 784)))
        assert torch.equal(*drawn)
    finally:
        torch.set_num_threads(before)


# torch.compile looks at it while it looks a layer's input over
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_network_draws_the_same_masks() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    plain = FNN(hidden_dims=[8, 8], dropout=0.3, input_dropout=0.2)
    compiled = deepcopy(plain)
    compiled.compile(dynamic=True, backend=counter)
    made = []
    for step, size in enumerate([70, 65, 25, 70, 65, 25, 70, 65]):
        pixels, logits = torch.full((size, 784), 100.0), []
        for network in (plain, compiled):
            assert network.mask_source is not None
            with network.mask_source.seeded((0, 0, step), CPU, 2 * size, slice(0, None, 2)):
                logits.append(network(pixels))
        assert torch.equal(*logits)
        logits[1].sum().backward()
        made.append(counter.frame_count)
    assert made[0] == made[-1]  # not compiled anew for every step or size
    torch.compiler.reset()


class Recorder(nn.Module):
    """Keeps every mask, in place of the first layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.drawn: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.drawn.append(self.layer(torch.ones_like(x)))
        return x


class SavesOnce(Callback):
    """Saves a checkpoint in the middle of the second epoch."""

    acts_every_n_steps = 3

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("keep_hardest", [1.0, 0.3])
def test_masks_of_a_run_follow_from_seed_epoch_and_position(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, keep_hardest: float
) -> None:
    path = tmp_path / "middle.ckpt"

    def fit(seed: int = 0, ckpt_path: Path | None = None) -> list[Tensor]:
        model = make_model(input_dropout=0.3, keep_hardest=keep_hardest)
        model.network.layers[0] = recorder = Recorder(model.network.layers[0])
        torch.seed()  # the state of the global generator is of no account
        callbacks = [] if ckpt_path else [SavesOnce(path)]
        run = trainer(tmp_path, logger=False, enable_checkpointing=False, callbacks=callbacks)
        run.fit(model, datamodule=make_data(seed=seed, batch_size=70), ckpt_path=ckpt_path)
        return recorder.drawn

    other, whole = fit(seed=1), fit()
    assert len(whole) == 8
    assert len({str(mask[:8].tolist()) for mask in [*other, *whole]}) == 16
    assert_same(fit(ckpt_path=path), whole[6:])


def test_a_batch_that_a_hook_has_changed_has_masks_too(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    data = make_data()
    data.on_after_batch_transfer = lambda batch, dataloader_idx: (  # type: ignore[method-assign]
        torch.cat([batch[0], batch[0]]),
        torch.cat([batch[1], batch[1]]),
    )
    run = trainer(tmp_path, logger=False, limit_val_batches=0, max_epochs=1)
    run.fit(make_model(dropout=0.3), datamodule=data)
    assert run.global_step > 0
