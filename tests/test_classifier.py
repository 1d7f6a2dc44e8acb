import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fnn_lightning import FNNClassifier
from fnn_lightning.errors import InputError
from tests.forks import StartFork
from tests.support import ended


@parametrize_with_checks([FNNClassifier()])  # type: ignore[untyped-decorator]
def test_it_keeps_the_rules_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def digits(count: int = 400) -> tuple[Any, Any]:
    pixels, labels = load_digits(return_X_y=True)
    return pixels[:count], labels[:count]


def small(**settings: Any) -> FNNClassifier:
    return FNNClassifier(**{"hidden_dims": [16], "max_epochs": 10, "batch_size": 20, **settings})


def test_it_learns_silently_and_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    x, y = digits(800)
    model = small().fit(x[:600], y[:600])
    assert model.score(x[600:], y[600:]) > 0.85
    assert capfd.readouterr() == ("", "")
    assert not list(Path().iterdir())
    assert (model.n_features_in_, model.classes_.tolist()) == (64, list(range(10)))
    # by hand: standardised over all values, then the layers
    scaled = torch.tensor((x[600:] - x[:600].mean()) / x[:600].std()).float()
    expected = model.network_.layers(scaled).softmax(1).detach().numpy()
    assert np.allclose(model.predict_proba(x[600:]), expected, atol=1e-5)


def test_the_scale_of_the_features_does_not_matter() -> None:
    x, y = digits()
    expected = small().fit(x, y).predict_proba(x)
    for scaled in (x * 1000 - 7, x / 16, x.astype(np.uint8)):
        assert np.allclose(small().fit(scaled, y).predict_proba(scaled), expected, atol=1e-3)


def test_the_result_depends_on_random_state_and_data_alone() -> None:
    x, y = digits()
    settings = {"dropout": 0.2, "batch_norm": True}
    model = small(**settings)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = model.fit(x, y).predict_proba(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert np.array_equal(small(**settings).fit(x, y).predict_proba(x), expected)
    assert np.array_equal(clone(model).fit(x, y).predict_proba(x), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(x), expected)
    other = small(random_state=1, **settings).fit(x, y).predict_proba(x)
    assert not np.allclose(other, expected)
    for read_only in (x.astype(np.float32), x.astype(np.uint8)):  # as joblib hands on large ones
        read_only.setflags(write=False)
        probabilities = clone(model).fit(read_only, y).predict_proba(read_only)
        assert np.allclose(probabilities, expected, atol=1e-5)
    drawn = small(random_state=np.random.RandomState(3), **settings).fit(x, y).predict_proba(x)
    again = small(random_state=np.random.RandomState(3), **settings).fit(x, y).predict_proba(x)
    assert np.array_equal(drawn, again)


def test_it_works_in_pipelines_and_searches() -> None:
    x, y = digits()
    pipeline = make_pipeline(MinMaxScaler(), small())
    alone = cross_val_score(pipeline, x, y, cv=3)
    assert alone.min() > 0.6
    assert np.array_equal(cross_val_score(pipeline, x, y, cv=3, n_jobs=2), alone)
    grid = {"hidden_dims": [[], (16,), np.array([8, 8])], "optimizer": ["SGD"], "lr": [1e-9, 0.1]}
    numbers = {"max_epochs": np.arange(3, 4), "batch_size": np.array([20])}
    search = GridSearchCV(small(), {**grid, **numbers}, cv=2).fit(x, y)
    assert search.best_params_["lr"] == 0.1
    assert search.best_estimator_.get_params()["max_epochs"] == 3


@pytest.mark.parametrize("classes", [1, 2, 25])
def test_any_labels_and_any_number_of_them(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.array([f"class {i:02}" for i in range(classes)])
    y = labels[np.arange(300) % classes]
    x = rng.normal(size=(300, classes)) / 10 + np.eye(classes)[np.arange(300) % classes]
    model = small(lr=0.3, max_epochs=40).fit(x, y)
    assert model.classes_.tolist() == labels.tolist()
    assert model.predict_proba(x).shape == (300, classes)
    assert model.score(x, y) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 0}, "`max_epochs` to be an integer of 1 or more, but got 0"),
        ({"max_epochs": 1.5}, "`max_epochs` to be an integer of 1 or more, but got 1.5"),
        ({"batch_size": 0}, "`batch_size` to be an integer of 1 or more, but got 0"),
        ({"batch_size": 2.5}, "`batch_size` to be an integer of 1 or more, but got 2.5"),
        ({"batch_size": "20"}, "`batch_size` to be an integer of 1 or more, but got '20'"),
        ({"hidden_dims": [0]}, r"`hidden_dims` to be positive integers, but got \[0\]"),
        ({"hidden_dims": 100}, r"`hidden_dims` to be positive integers, but got 100"),
        ({"hidden_dims": [2.5]}, r"`hidden_dims` to be positive integers, but got \[2.5\]"),
        ({"activation": "swish"}, "`activation` to be one of celu"),
        ({"optimizer": "Adamm"}, "Adamm"),
        ({"lr": -1.0}, "learning rate"),
        ({"random_state": -1}, "`random_state`"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small(**settings).fit(*digits(40))
    assert "\n" not in str(caught.value)


# in a process without the package and scikit-learn, as far as a fork can be one
WITHOUT_SCIKIT_LEARN = """
import sys
for name in [name for name in sys.modules if name.startswith(("fnn_lightning", "sklearn"))]:
    del sys.modules[name]
sys.modules["sklearn"] = None
import fnn_lightning
try: fnn_lightning.FNNClassifier
except ValueError as error: print(error)
"""


def test_without_scikit_learn_it_says_what_to_install(fork: StartFork) -> None:
    status, out, err = ended(fork("--version", before=WITHOUT_SCIKIT_LEARN))
    assert status == 0, err
    assert "pip install -e '.[quickstart]'" in out
