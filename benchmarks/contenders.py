"""The contenders of `speed.py`: the work of `configs/relu_100.yaml` done in four other ways.

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
from typing import Any

EPOCHS, BATCH_SIZE, EVALUATE_EVERY, LR, HIDDEN, SEED = 5, 100, 500, 0.1, 100, 0


def tutorial(data_dir: str) -> float:
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
    return time.perf_counter() - start


def lightning(data_dir: str) -> float:
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
    return timer.seconds


def sklearn(data_dir: str) -> float:
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
    return time.perf_counter() - start


def plain(data_dir: str) -> float:
    """(d) A plain PyTorch loop over tensors in memory, as fast as it gets without compilation."""
    import torch

    images, labels, test_images, test_labels = (
        torch.from_numpy(array) for array in arrays(data_dir)
    )
    model = mlp([HIDDEN])
    start = time.perf_counter()
    plain_loop(
        model,
        (images, labels),
        BATCH_SIZE,
        steps=EPOCHS * len(images) // BATCH_SIZE,
        test=(test_images, test_labels),
    )
    return time.perf_counter() - start


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
    """Train by SGD as fast as it goes: every line is the fastest of those that were measured.

    Selecting `uint8` rows and scaling them takes 31 µs a batch of 100, selecting `float32` rows 48;
    four `add_` take 11 µs, the fastest `torch.optim.SGD.step` 26.
    """
    import torch
    from torch.nn import functional as F

    images, labels = train
    parameters = list(model.parameters())
    step = 0
    while step < steps:
        order = torch.randperm(len(images))
        for indices in torch.split(order, batch_size):
            if step == steps:
                break
            logits = model(images.index_select(0, indices).div(255))
            loss = F.cross_entropy(logits, labels.index_select(0, indices))
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in parameters:
                    parameter.add_(parameter.grad, alpha=-LR)
            step += 1
            if test and step % EVALUATE_EVERY == 0:
                with torch.no_grad():
                    correct = int((model(test[0].div(255)).argmax(1) == test[1]).sum())
                print(f"step {step}, loss {loss.item():.4f}, {correct} correct")


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


CONTENDERS: dict[str, Callable[[str], float]] = {
    "tutorial": tutorial,
    "lightning": lightning,
    "sklearn": sklearn,
    "plain": plain,
}


def main() -> None:
    """Run one contender, and report the seconds of its training loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("--report", required=True, help="file to write")
    options = parser.parse_args()
    seconds = CONTENDERS[options.contender](options.data_dir)
    Path(options.report).write_text(json.dumps({"loop": seconds}))


if __name__ == "__main__":
    main()
