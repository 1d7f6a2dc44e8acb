from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold, cross_val_predict

from fnn_lightning import FNNClassifier
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.evaluation.suspect_labels import (
    MAX_SHOWN,
    make_gallery,
    suspect_labels,
    suspects_csv,
)


def test_labels_that_were_changed_come_first() -> None:
    features, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    changed = rng.choice(len(labels), 50, replace=False)
    given = labels.copy()
    given[changed] = (labels[changed] + rng.integers(1, 10, 50)) % 10
    net = FNNClassifier([100], optimizer="Adam", lr=0.005, max_epochs=8)
    folds = KFold(3, shuffle=True, random_state=0)  # the images of a writer stand side by side
    probabilities = cross_val_predict(net, features, given, cv=folds, method="predict_proba")
    images = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
    predictions = Predictions(
        images, torch.arange(len(labels)), torch.tensor(given), torch.tensor(probabilities)
    )
    suspects = suspect_labels(predictions)
    first = {each.index for each in suspects[:75]}
    assert len(first & set(changed.tolist())) >= 45
    # what the nets say of a changed label is what it was
    told = [each for each in suspects[:75] if each.index in changed]
    right = sum(each.predicted == labels[each.index] for each in told)
    assert right >= 0.9 * len(told)
    assert all(each.label == given[each.index] for each in suspects)


def two_classes() -> Predictions:
    """Predict four images: the second and the fourth are taken for another class."""
    names = ["cat <b>", "dog"]
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 28, 28)
    p = torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.4, 0.6], [0.875, 0.125]])
    labels = torch.tensor([0, 1, 1, 1])
    files = [f"train/{'ab'[label]}/{k}.png" for k, label in enumerate(labels.tolist())]
    return Predictions(images, torch.arange(4), labels, p, names, "resize", files=files)


def test_the_list_and_the_gallery_show_the_same_images() -> None:
    predictions = two_classes()
    suspects = suspect_labels(predictions)
    assert suspects_csv(predictions, suspects).decode() == (
        "index,file,label,class,p_label,p_class\n"
        "3,train/b/3.png,dog,cat <b>,0.125,0.875\n"
        "1,train/b/1.png,dog,cat <b>,0.25,0.75\n"
    )
    page = make_gallery(predictions, suspects)
    assert "2 of the 4 training images" in " ".join(page.split())
    assert page.index("#3 train/b/3.png") < page.index("#1 train/b/1.png")
    assert "cat &lt;b&gt;: 87.5 %" in page
    assert "cat <b>" not in page
    assert page.count("data:image/png") == 2


def test_a_thousand_classes_and_none_that_is_suspect(tmp_path: Path) -> None:
    count = 1000
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    indices, names = torch.arange(count), [f"class {k}" for k in range(count)]
    every = Predictions(images, indices, indices.roll(1), torch.eye(count), names)
    suspects = suspect_labels(every)
    assert len(suspects) == count
    page = make_gallery(every, suspects)
    assert page.count("<figure>") == MAX_SHOWN
    assert f"first {MAX_SHOWN}" in page
    assert "#0<" in page.replace(" ", "")
    none = Predictions(images, indices, indices, torch.eye(count), names)
    assert suspect_labels(none) == []
    assert "0 of the 1,000 training images" in make_gallery(none, [])
    assert suspects_csv(none, []).decode() == "index,label,class,p_label,p_class\n"
