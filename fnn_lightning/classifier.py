"""`FNNClassifier`: the network and its training as an estimator of scikit-learn."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.datamodule import EVAL_BATCH_SIZE
from fnn_lightning.errors import InputError
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.network import FNN, Activation, Initialization
from fnn_lightning.runs.signals import keep_keyboard_interrupt
from fnn_lightning.trainer import quiet_lightning

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise InputError(
        "Expected scikit-learn 1.6 or newer, which FNNClassifier is an estimator of, but it is not "
        "installed: pip install -e '.[quickstart]'"
    ) from error

# bytes stay bytes, others become float32
AS_PYTORCH_TAKES_IT: dict[str, Any] = {"dtype": [np.float32, np.uint8], "force_writeable": True}
SEEDING = threading.Lock()  # PyTorch has one state of random numbers for all threads


class FNNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A feed-forward network as an estimator of scikit-learn.

    It trains by the steps of `FNNLitModule`, without output and files. Features may be on any
    scale: the mean and the standard deviation over all training values are measured in `fit`, and
    every value is standardised by these two. Features of different scales each need their own, by
    a `StandardScaler` before it. The result depends on `random_state` and the data alone.

    Args:
        hidden_dims: Width of every hidden layer, from the input to the output.
        activation: Function after every hidden layer, by its name in `torch.nn.functional`.
        batch_norm: Whether hidden layers are normalised over the batch.
        dropout: Probability with which an output of a hidden layer is set to 0 in training.
        initialization: How weights start, `pytorch`, `he` or `xavier`. See `FNN`.
        label_smoothing: Share of the target's probability that is spread evenly over all classes.
        optimizer: Name of a class of `torch.optim`.
        lr: Its learning rate.
        batch_size: Number of samples in a step.
        max_epochs: Number of times that it sees every sample.
        random_state: Seed of the initial weights, the order of the batches and dropout; or a
            NumPy `RandomState` that the seed is drawn from; or None, for NumPy's own.

    Attributes:
        classes_: Labels in the order of the columns of `predict_proba`, of shape `(classes,)`.
        n_features_in_: Number of features.
        network_: The trained network, an `FNN` on the CPU, in evaluation mode.

    Raises:
        InputError: In `fit`, if an argument is out of its range.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> model = FNNClassifier(hidden_dims=[32], max_epochs=10).fit(X[:1000], y[:1000])
        >>> model.score(X[1000:], y[1000:]) > 0.9
        True
    """

    def __init__(
        self,
        hidden_dims: Sequence[int] = (100,),
        activation: Activation = "relu",
        *,
        batch_norm: bool = False,
        dropout: float = 0.0,
        initialization: Initialization = "pytorch",
        label_smoothing: float = 0.0,
        optimizer: str = "SGD",
        lr: float = 0.1,
        batch_size: int = 100,
        max_epochs: int = 5,
        random_state: Any = 0,
    ) -> None:
        self.hidden_dims = hidden_dims
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = dropout
        self.initialization = initialization
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "FNNClassifier":  # noqa: N803 - as scikit-learn has it
        """Train a new network.

        Args:
            X: Features, of shape `(N, features)`.
            y: Labels of any kind, of shape `(N,)`.
        """
        X, y = validate_data(self, X, y, **AS_PYTORCH_TAKES_IT)  # noqa: N806
        check_classification_targets(y)
        for name in ("batch_size", "max_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise InputError(
                    f"Expected `{name}` to be an integer of 1 or more, but got {value!r}"
                )
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        elif seed < 0:
            raise InputError(f"Expected `random_state` to be 0 or more, but got {seed}")
        self.classes_, labels = np.unique(y, return_inverse=True)
        features = torch.from_numpy(X)
        module = self._make_module(features, int(seed))
        loader = InMemoryDataLoader(
            features,
            torch.from_numpy(labels),
            torch.arange(len(features)),
            batch_size=int(self.batch_size),
            shuffle_seed=int(seed),
        )
        train(module, loader, int(self.max_epochs))
        self.network_ = module.network.cpu().eval()
        return self

    def _make_module(self, features: Tensor, seed: int) -> FNNLitModule:
        """Make an untrained module for as many features and classes as there are."""
        if not isinstance(self.hidden_dims, Iterable):
            raise InputError(
                f"Expected `hidden_dims` to be positive integers, but got {self.hidden_dims}: "
                f"give a list, [{self.hidden_dims}]"
            )
        # a grid may hold NumPy's integers
        widths = [int(each) if isinstance(each, np.integer) else each for each in self.hidden_dims]
        std, mean = (float(each) / 255 for each in torch.std_mean(features.float(), correction=0))
        optimizer = {
            "class_path": f"torch.optim.{self.optimizer}",
            "init_args": {"lr": self.lr},
        }
        with SEEDING, torch.random.fork_rng(devices=[]):
            module = FNNLitModule(
                class_names=list(map(str, self.classes_)),
                hidden_dims=[],
                label_smoothing=self.label_smoothing,
                optimizer=optimizer,
            )
            torch.manual_seed(seed)
            module.network = FNN(  # its own takes MNIST's images
                in_features=features.shape[1],
                hidden_dims=widths,
                out_features=len(self.classes_),
                activation=self.activation,
                pixel_mean=mean,
                pixel_std=std or 1.0,
                batch_norm=self.batch_norm,
                dropout=self.dropout,
                initialization=self.initialization,
            )
        return module

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Predict the probability of each class.

        Args:
            X: Features, of shape `(N, features)`.

        Returns:
            `float32` of shape `(N, classes)`, in the order of `classes_`; each row sums to 1.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, **AS_PYTORCH_TAKES_IT)  # noqa: N806
        with torch.inference_mode():
            batches = torch.split(torch.from_numpy(X), EVAL_BATCH_SIZE)
            probabilities = [self.network_(batch).softmax(dim=1) for batch in batches]
        result: NDArray[np.float32] = torch.cat(probabilities).numpy()
        return result

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Predict labels.

        Args:
            X: Features, of shape `(N, features)`.

        Returns:
            The most probable of `classes_`, of shape `(N,)`.
        """
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels


def train(module: FNNLitModule, loader: InMemoryDataLoader, max_epochs: int) -> None:
    """Train a module without output and files."""
    quiet_lightning()
    trainer = Trainer(
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    with keep_keyboard_interrupt():
        trainer.fit(module, loader, val_dataloaders=loader)
