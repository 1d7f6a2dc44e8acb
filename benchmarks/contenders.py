"""The contenders of `speed.py`: the work of `configs/relu_100.yaml` done in five other ways.

    python benchmarks/contenders.py plain --data_dir data --report report.json

3,000 steps of batch 100 and six evaluations of the test set. What a contender imports, it imports
itself: the time that takes is a part of its own.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EPOCHS, BATCH_SIZE, EVALUATE_EVERY, LR, HIDDEN, SEED = 5, 100, 500, 0.1, 100, 0


class Result(NamedTuple):
    """What a contender reports."""

    loop: float
    """Seconds of its training loop, evaluations included."""
    compilation: float = 0.0
    """Seconds of compilation, which are not in `loop`."""
    threads: int = 0
    """How many threads it chose to run on; 0 if it chose none."""


def tutorial(data_dir: str) -> Result:
    """(a) The tutorials' loop over `torchvision.datasets.MNIST` and a `DataLoader`."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    train_set, test_set = (
        datasets.MNIST(data_dir, train=train, transform=transforms.ToTensor())
        for train in (True, False)
    )
    train_loader = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=BATCH_SIZE)
    model = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    start, step = time.perf_counter(), 0
    for _ in range(EPOCHS):
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images.view(-1, 784)), labels)
            loss.backward()
            optimizer.step()
            step += 1
            if step % EVALUATE_EVERY == 0:
                correct = total = 0
                with torch.no_grad():
                    for images, labels in test_loader:
                        predicted = model(images.view(-1, 784)).argmax(1)
                        total += len(labels)
                        correct += int((predicted == labels).sum())
                print(f"step {step}, loss {loss.item():.4f}, accuracy {100 * correct / total:.2f}")
    return Result(time.perf_counter() - start)


def lightning(data_dir: str) -> Result:
    """(b) Lightning over the same `DataLoader`, with metrics and logging in every step."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from loop_timer import LoopTimer
    from torch import nn
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torchmetrics.classification import MulticlassAccuracy
    from torchvision import datasets, transforms

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
            self.accuracy = MulticlassAccuracy(10, average="micro")
            self.val_accuracy = MulticlassAccuracy(10, average="micro")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            images, labels = batch
            logits = self.layers(images.flatten(1))
            loss = F.cross_entropy(logits, labels)
            self.accuracy(logits, labels)
            self.log("train/loss", loss)
            self.log("train/acc", self.accuracy)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            images, labels = batch
            logits = self.layers(images.flatten(1))
            self.val_accuracy(logits, labels)
            self.log("val/loss", F.cross_entropy(logits, labels))
            self.log("val/acc", self.val_accuracy)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=LR)

    train_set, test_set = (
        datasets.MNIST(data_dir, train=train, transform=transforms.ToTensor())
        for train in (True, False)
    )
    with tempfile.TemporaryDirectory() as folder:
        timer = LoopTimer()
        trainer = Trainer(
            max_epochs=EPOCHS,
            val_check_interval=EVALUATE_EVERY,
            check_val_every_n_epoch=None,
            default_root_dir=folder,
            accelerator="cpu",
            callbacks=[timer],
        )
        train_loader = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True)
        trainer.fit(Module(), train_loader, DataLoader(test_set, batch_size=BATCH_SIZE))
    return Result(timer.seconds)


def sklearn(data_dir: str) -> Result:
    """(c) scikit-learn's `MLPClassifier`, same schedule, without the evaluations."""
    import warnings

    from sklearn.neural_network import MLPClassifier

    images, labels, _, _ = arrays(data_dir)
    images = (images / 255).astype("float32")
    classifier = MLPClassifier(
        hidden_layer_sizes=(HIDDEN,),
        solver="sgd",
        alpha=0.0,
        batch_size=BATCH_SIZE,
        learning_rate_init=LR,
        momentum=0.0,
        nesterovs_momentum=False,
        max_iter=EPOCHS,
        tol=0.0,
        random_state=SEED,
    )
    warnings.simplefilter("ignore")  # that five epochs have not converged
    start = time.perf_counter()
    classifier.fit(images, labels)
    return Result(time.perf_counter() - start)


def plain(data_dir: str) -> Result:
    """(d) A plain PyTorch loop over tensors in memory, as fast as it gets with autograd.

    On one or on all threads, whichever takes less time for a few hundred steps before the loop.
    """
    import torch

    images, labels, test_images, test_labels = (
        torch.from_numpy(array) for array in arrays(data_dir)
    )
    train, test = (images, labels), (test_images, test_labels)
    threads = faster_threads(lambda: plain_loop(mlp([HIDDEN]), train, BATCH_SIZE, steps=200))
    torch.set_num_threads(threads)
    model = mlp([HIDDEN])
    steps = EPOCHS * len(images) // BATCH_SIZE
    start = time.perf_counter()
    plain_loop(model, train, BATCH_SIZE, steps, test)
    return Result(time.perf_counter() - start, threads=threads)


def faster_threads(trial: Callable[[], object]) -> int:
    """Return one or the current number of threads, whichever runs `trial` in less time."""
    import torch

    choices = (1, torch.get_num_threads())
    seconds: dict[int, list[float]] = {threads: [] for threads in choices}
    for _ in range(4):  # in turn, as the machine's speed varies
        for threads in choices:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            trial()
            seconds[threads].append(time.perf_counter() - start)
    return min(choices, key=lambda threads: min(seconds[threads]))


def mlp(hidden_dims: list[int]) -> Any:
    """Make the layers of a plain PyTorch model."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    dims = [784, *hidden_dims]
    layers: list[Any] = []
    for i in range(len(hidden_dims)):
        layers += [nn.Linear(dims[i], dims[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dims[-1], 10))


def plain_loop(model: Any, train: Any, batch_size: int, steps: int, test: Any = None) -> None:
    """Train by SGD as fast as it goes with autograd: what is here was the fastest when measured.

    Compared were `uint8` rows that are scaled and prepared `float32` rows; one and several batches
    selected at once; `nn.Sequential` and its layers as functions; `backward` and `autograd.grad`;
    `torch.optim.SGD` with `fused=True` (60 µs a step more), `torch._foreach_add_` and `add_`.

    Args:
        model: One of `mlp`.
        train: Images, `uint8` of shape `(N, 784)`, and labels.
        batch_size: Images in a step.
        steps: How many steps to train.
        test: The same of the test set, to evaluate on.
    """
    import torch
    from torch.nn import functional as F

    images, labels = train
    parameters = list(model.parameters())
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)

    def forward(x: Any) -> Any:
        for weight, bias in hidden:
            x = F.linear(x, weight, bias).relu_()
        return F.linear(x, *last)

    if test:
        test_images, test_labels = test[0].div(255), test[1]
    selected_at_once = batch_size * max(1, 500 // batch_size)
    step = 0
    while True:
        order = torch.randperm(len(images))
        for indices in torch.split(order, selected_at_once):
            x_batches = images.index_select(0, indices).div(255).split(batch_size)
            y_batches = labels.index_select(0, indices).split(batch_size)
            for x, y in zip(x_batches, y_batches, strict=True):
                loss = F.cross_entropy(forward(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for parameter in parameters:
                        parameter.add_(parameter.grad, alpha=-LR)
                        parameter.grad = None
                step += 1
                if test and step % EVALUATE_EVERY == 0:
                    with torch.no_grad():
                        correct = int((forward(test_images).argmax(1) == test_labels).sum())
                    print(f"step {step}, loss {loss.item():.4f}, {correct} correct")
                if step == steps:
                    return


def jax(data_dir: str) -> Result:
    """(f) JAX: the steps between two evaluations are one compiled `lax.scan`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def logits(parameters: Any, images: Any) -> Any:
        x = images.astype(jnp.float32) / 255
        (hidden_weight, hidden_bias), (weight, bias) = parameters
        return jax.nn.relu(x @ hidden_weight + hidden_bias) @ weight + bias

    def cross_entropy(parameters: Any, images: Any, labels: Any) -> Any:
        log_p = jax.nn.log_softmax(logits(parameters, images))
        return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

    def train(parameters: Any, images: Any, labels: Any, order: Any) -> Any:
        def step(parameters: Any, indices: Any) -> Any:
            loss, gradients = jax.value_and_grad(cross_entropy)(
                parameters, images[indices], labels[indices]
            )
            updated = jax.tree.map(lambda value, grad: value - LR * grad, parameters, gradients)
            return updated, loss

        parameters, losses = jax.lax.scan(step, parameters, order)
        return parameters, losses[-1]

    def count_correct(parameters: Any, images: Any, labels: Any) -> Any:
        return (logits(parameters, images).argmax(1) == labels).sum()

    rng = np.random.default_rng(SEED)
    parameters: Any = []
    for inputs, outputs in ((784, HIDDEN), (HIDDEN, 10)):
        bound = inputs**-0.5  # as `nn.Linear` draws them
        weight = rng.uniform(-bound, bound, (inputs, outputs))
        bias = rng.uniform(-bound, bound, outputs)
        parameters.append((jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)))
    images, labels, test_images, test_labels = (
        jnp.asarray(array if array.dtype == np.uint8 else array.astype(np.int32))
        for array in arrays(data_dir)
    )
    indices = jnp.zeros((EVALUATE_EVERY, BATCH_SIZE), jnp.int32)
    start = time.perf_counter()
    compiled_train = jax.jit(train).lower(parameters, images, labels, indices).compile()
    compiled_count = jax.jit(count_correct).lower(parameters, test_images, test_labels).compile()
    compilation = time.perf_counter() - start

    start = time.perf_counter()
    epochs = [rng.permutation(len(images)) for _ in range(EPOCHS)]
    chunks = np.concatenate(epochs).astype(np.int32).reshape(-1, EVALUATE_EVERY, BATCH_SIZE)
    for number, order in enumerate(chunks, 1):
        parameters, loss = compiled_train(parameters, images, labels, order)
        correct = int(compiled_count(parameters, test_images, test_labels))
        print(f"step {EVALUATE_EVERY * number}, loss {float(loss):.4f}, {correct} correct")
    return Result(time.perf_counter() - start, compilation)


def arrays(data_dir: str) -> tuple[Any, Any, Any, Any]:
    """Read MNIST with NumPy.

    Returns:
        Training images, `uint8` of shape `(60000, 784)`, their labels, `int64` of shape
        `(60000,)`, test images and test labels.
    """
    import numpy as np

    parts = []
    for part in ("train", "t10k"):
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
            path = Path(data_dir) / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
            parts.append(np.fromfile(path, np.uint8)[header:])
    images, labels, test_images, test_labels = parts
    return (
        images.reshape(-1, 784),
        labels.astype(np.int64),
        test_images.reshape(-1, 784),
        test_labels.astype(np.int64),
    )


CONTENDERS: dict[str, Callable[[str], Result]] = {
    "tutorial": tutorial,
    "lightning": lightning,
    "sklearn": sklearn,
    "plain": plain,
    "jax": jax,
}


def main() -> None:
    """Run one contender, and write its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("--report", required=True, help="file to write")
    options = parser.parse_args()
    result = CONTENDERS[options.contender](options.data_dir)
    Path(options.report).write_text(json.dumps(result._asdict()))


if __name__ == "__main__":
    main()
