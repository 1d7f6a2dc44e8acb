"""Tells pictures that look like none of the classes, by what a network makes of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.datasets import DIGITS
from fnn_lightning.datamodule import EVAL_BATCH_SIZE
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.predictions import evaluation_mode
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.network import ACTIVATIONS

MARKED = 0.01
"""Fraction of the images of the classes that are marked all the same."""
KEY = "novelty"  # in a checkpoint
MAX_FITTED = 5000  # images that a detector, or its threshold, is fitted to; more make it no better
MAX_COMPONENTS = 20
MAX_NUMBERS = 250_000  # that a detector holds: 1 MB
MIN_IMAGES = 50  # of every class, to fit a covariance to
MIN_CALIBRATION = 300  # images, to find a threshold that one in a hundred exceeds


class NoveltyDetector(NamedTuple):
    """Says of an image whether it looks like none of the classes that a network was trained on.

    Its score is the sum of two. The energy, minus the log-sum-exp of the logits, is high where no
    class has much for it (Liu et al. 2020, arXiv:2010.03759). The distance is that to the nearest
    class in the first hidden layer: minus twice the log-likelihood, but for a constant, of a
    Gaussian for each class (after Lee et al. 2018, arXiv:1807.03888), whose covariance is that of
    probabilistic PCA (Tipping and Bishop 1999), so that it takes little room. Without hidden layers
    it is in the scaled pixels. docs/results.md compares them with other
    scores.

    All are `float32`, of `C` classes, `F` features and `K` components.
    """

    means: Tensor
    """Mean of each class, shape `(C, F)`."""
    components: Tensor
    """Principal components of each class, orthonormal, shape `(C, F, K)`."""
    variances: Tensor
    """Along each component and, last, along any other direction: shape `(C, K + 1)`."""
    weights: Tensor
    """Of energy and distance, and an offset: shape `(3,)`. The score is above 0 of `MARKED` of the
    images of the classes."""

    def marks(self, module: FNNLitModule, images: Tensor) -> Tensor:
        """Tell which images look like none of the classes.

        Args:
            module: The network that the detector was fitted to.
            images: Raw pixels 0–255 of shape `(N, 28, 28)`.

        Returns:
            `bool` of shape `(N,)`, on the CPU.
        """
        return self.scores(*features_and_logits(module, images)) > 0

    def scores(self, features: Tensor, logits: Tensor) -> Tensor:
        """Compute the scores of images, higher for those that look like none of the classes.

        Args:
            features: Shape `(N, F)`.
            logits: Shape `(N, C)`.

        Returns:
            `float32` of shape `(N,)`.
        """
        energy_weight, distance_weight, offset = self.weights
        distance = distances(features, self.means, self.components, self.variances)
        scores: Tensor = energy_weight * energy(logits) + distance_weight * distance + offset
        return scores

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return self._asdict()


def energy(logits: Tensor) -> Tensor:
    """Compute minus the log-sum-exp of logits of shape `(N, C)`, as shape `(N,)`.

    >>> energy(torch.zeros(1, 10))
    tensor([-2.3026])
    """
    return -logits.logsumexp(dim=1)


def distances(features: Tensor, means: Tensor, components: Tensor, variances: Tensor) -> Tensor:
    """Compute the distance of each image to the nearest class: see `NoveltyDetector`.

    Args:
        features: Shape `(N, F)`.
        means: As in `NoveltyDetector`, like the others.
        components: Likewise.
        variances: Likewise.

    Returns:
        Shape `(N,)`.
    """
    others = features.shape[1] - components.shape[2]  # directions without a component
    of_classes = []
    for mean, axes, variance in zip(means, components, variances, strict=True):
        deviations = features - mean
        along = (deviations @ axes).square()
        rest = (deviations.square().sum(dim=1) - along.sum(dim=1)).clamp(min=0)
        spread = variance[:-1].log().sum() + others * variance[-1].log()
        of_classes.append((along / variance[:-1]).sum(dim=1) + rest / variance[-1] + spread)
    return torch.stack(of_classes, dim=1).amin(dim=1)


def fit_detector(
    module: FNNLitModule, training: InMemoryDataLoader, validation: InMemoryDataLoader | None
) -> NoveltyDetector | None:
    """Fit a detector to a network, and its threshold to images that it was not fitted to.

    Args:
        module: The trained network.
        training: Serves the training images.
        validation: Serves images held out from training. Where there are none, or too few, some of
            the training images give the threshold; more than `MARKED` of other images may then be
            above it.

    Returns:
        The detector; None where `fit_novelty` makes none.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(training.indices), generator=generator)
    indices = training.indices.cpu()[order]
    held_out = torch.empty(0, dtype=torch.int64) if validation is None else validation.indices.cpu()
    held_out = held_out[torch.randperm(len(held_out), generator=generator)[:MAX_FITTED]]
    fitted = indices[:MAX_FITTED]
    if len(held_out) < MIN_CALIBRATION:
        apart = min(MAX_FITTED, len(indices) // 3)
        fitted, held_out = indices[:-apart][:MAX_FITTED], indices[len(indices) - apart :]
    images, labels = training.images.cpu(), training.labels.cpu()
    return fit_novelty(module, images[fitted], labels[fitted], images[held_out])


def fit_novelty(
    module: FNNLitModule, images: Tensor, labels: Tensor, held_out: Tensor
) -> NoveltyDetector | None:
    """Fit a detector to a trained network.

    Args:
        module: The network.
        images: Training images, raw pixels of shape `(N, 28, 28)`.
        labels: Their classes, `int64` of shape `(N,)`.
        held_out: Images that neither the network nor this has been fitted to, likewise: the
            threshold is where `MARKED` of them are above it.

    Returns:
        The detector; None if there are too few images of a class, too few held out, or so many
        classes that a detector would take more than 1 MB.
    """
    classes = len(module.class_names)
    features, logits = features_and_logits(module, images)
    labels = labels.cpu()
    size = features.shape[1]
    k = min(MAX_COMPONENTS, size - 1, MAX_NUMBERS // (classes * size) - 1)
    fewest = int(labels.bincount(minlength=classes).min())
    if k < 1 or fewest < MIN_IMAGES or len(held_out) < MIN_CALIBRATION:
        return None
    with torch.random.fork_rng(devices=[]):  # of the randomised SVD
        torch.manual_seed(0)  # once, since it takes milliseconds
        try:
            fitted = [fit_gaussian(features[labels == each], k) for each in range(classes)]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None  # features so large that they overflow
    gaussians = [torch.stack(parts) for parts in zip(*fitted, strict=True)]
    features, logits = features_and_logits(module, held_out)
    parts = torch.stack([energy(logits), distances(features, *gaussians)], dim=1)
    middle, high = parts.quantile(torch.tensor([0.5, 1 - 2 * MARKED]), dim=0)
    weights = 1 / (high - middle).clamp(min=1e-6)  # so that neither outweighs the other
    threshold = (parts @ weights).quantile(1 - MARKED)
    means, components, variances = gaussians
    offset = -threshold[None]
    detector = NoveltyDetector(means, components, variances, torch.cat([weights, offset]))
    return detector if all(each.isfinite().all() for each in detector) else None


def fit_gaussian(features: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the Gaussian of probabilistic PCA to the features of a class, by a randomised SVD.

    Args:
        features: Shape `(N, F)`, `N` at least 2.
        k: Number of components, below `F`.

    Returns:
        Mean, components and variances, as `NoveltyDetector` has them of each class.
    """
    mean = features.mean(dim=0)
    deviations = features - mean
    _, singular, axes = torch.svd_lowrank(deviations, q=min(k + 10, *deviations.shape))
    along = singular[:k].square() / len(features)
    total = deviations.square().sum() / len(features)
    rest = (total - along.sum()) / (features.shape[1] - k)
    # a feature that never changes must not make any other value infinitely far away
    floor = (1e-4 * total / features.shape[1]).clamp(min=1e-12)
    return mean, axes[:, :k], torch.cat([along, rest[None]]).clamp(min=floor)


def features_and_logits(module: FNNLitModule, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the first hidden layer's outputs, and the logits, in evaluation mode.

    Args:
        module: The network.
        images: Raw pixels 0–255 of shape `(N, 28, 28)`.

    Returns:
        `float32` of shape `(N, F)` and `(N, C)`, on the CPU. Without hidden layers, the features
        are the scaled pixels.
    """
    network = module.network
    activations = tuple(ACTIVATIONS.values())
    ends = [i for i, layer in enumerate(network.layers) if isinstance(layer, activations)]
    first = ends[0] + 1 if ends else 0
    parts = []
    with evaluation_mode(network), torch.inference_mode():
        for batch in torch.split(images, EVAL_BATCH_SIZE):
            features = network.layers[:first](network.scale(batch.to(module.device)))
            logits = network.layers[first:](features)
            parts.append((features.float().cpu(), logits.float().cpu()))
    # outside of inference mode, so that the results are ordinary tensors
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits


def stored_novelty(checkpoint: Mapping[str, Any], path: str) -> NoveltyDetector | None:
    """Return the detector that a checkpoint holds; None if it holds none, as an old one.

    Args:
        checkpoint: What `read_checkpoint` returned.
        path: Its file, for the message.

    Raises:
        InputError: If it is not what `fit_novelty` makes.
    """
    state = checkpoint.get(KEY)
    if state is None:
        return None
    settings = checkpoint["hyper_parameters"]
    classes = len(settings.get("class_names", DIGITS))
    size = (*settings["hidden_dims"], 784)[0]
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(state, dict) and state.keys() == set(NoveltyDetector._fields):
        shapes = {
            name: tuple(value.shape)
            for name, value in state.items()
            if isinstance(value, Tensor) and value.dtype == torch.float and value.isfinite().all()
        }
    k = (*shapes.get("variances", ()), 0, 0)[1] - 1
    expected = {
        "means": (classes, size),
        "components": (classes, size, k),
        "variances": (classes, k + 1),
        "weights": (3,),
    }
    if shapes != expected or not (state["variances"] > 0).all():
        raise InputError(
            f"Expected a detector of novelty in {path}, but got something else: train "
            "the network again"
        )
    return NoveltyDetector(**state)
