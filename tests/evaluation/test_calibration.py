import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from fnn_lightning import FNNLitModule, evaluate
from fnn_lightning.commands.export import Probabilities
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.calibration import (
    fit_temperature,
    stored_temperature,
    to_probabilities,
)
from fnn_lightning.evaluation.measures import measure
from fnn_lightning.evaluation.predictions import Predictions


def sample(scale: float, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Draw labels from the probabilities of logits, which are then scaled: so is the optimum."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, classes, generator=generator)
    labels = logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    return scale * logits, labels


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_temperature_is_that_of_the_highest_likelihood(scale: float, classes: int) -> None:
    logits, labels = sample(scale, classes)

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(logits.double() / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(math.exp(found.x), abs=2e-4)
    assert temperature == pytest.approx(scale, rel=0.15)


def test_a_temperature_that_would_be_endless_is_bounded_or_none() -> None:
    logits, labels = sample(1.0)
    assert fit_temperature(1000 * logits, labels) == 20
    assert fit_temperature(logits / 1000, labels) == 0.05
    assert fit_temperature(logits, logits.argmin(dim=1)) == 20  # worse than chance
    assert fit_temperature(logits, logits.argmax(dim=1)) is None  # no mistake
    assert fit_temperature(logits[:0], labels[:0]) is None
    assert fit_temperature(torch.full_like(logits, math.nan), labels) is None


@pytest.mark.parametrize("temperature", [None, 0.05, 0.63, 3.0, 20.0])
def test_no_temperature_changes_the_class(temperature: float | None) -> None:
    low = 1 + torch.rand(1000, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([low, torch.nextafter(low, torch.tensor(9.0))], dim=1)
    probabilities = torch.eye(2)
    made = Predictions.of_logits(
        torch.zeros(1), torch.arange(1000), torch.ones(1000).long(), logits, stand_in(temperature)
    )
    assert made.is_correct.all()
    if temperature is not None and temperature < 4:
        assert (made.probabilities[:, 1] > made.probabilities[:, 0]).all()
    huge = to_probabilities(torch.tensor([[-3e38, 3e38]]), temperature)
    assert torch.equal(huge, probabilities[1:])


def stand_in(temperature: float | None) -> Any:
    module = FNNLitModule(hidden_dims=[], class_names=["a", "b"])
    module.temperature = temperature
    return module


def test_both_calibration_errors_equal_those_computed_by_hand() -> None:
    # at temperature 1 each is 90 % sure, at 2 as odds of 3 to 1; two of three are right
    logits = torch.tensor([[math.log(9), 0.0]]).expand(3, 2)
    labels = torch.tensor([0, 0, 1])
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    given = images, torch.arange(3), labels, logits
    results = measure(Predictions.of_logits(*given, stand_in(2.0)))
    assert results["temperature"] == 2
    assert results["expected_calibration_error"] == pytest.approx(0.75 - 2 / 3, abs=1e-6)
    without = results["expected_calibration_error_without_temperature"]
    assert without == pytest.approx(0.9 - 2 / 3, abs=1e-6)
    plain = measure(Predictions.of_logits(*given, stand_in(None)))
    assert plain["expected_calibration_error"] == pytest.approx(without)
    assert plain["temperature"] is None
    assert plain["expected_calibration_error_without_temperature"] is None


def test_all_that_predicts_divides_by_the_temperature() -> None:
    torch.manual_seed(0)
    module = FNNLitModule(hidden_dims=[8]).eval()
    images = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        logits = module(images)
    module.temperature = 0.2
    expected = (logits / 0.2).softmax(dim=1)
    assert not torch.allclose(expected, logits.softmax(dim=1), atol=0.01)
    classes, probabilities = module.predict(images)
    step = module.predict_step(images, 0)
    evaluation = evaluate(module, (images, logits.argmax(dim=1)))
    for each in (
        probabilities,
        step["probabilities"],
        evaluation.probabilities,
        Probabilities(module.network, 0.2)(images),
    ):
        assert torch.allclose(each, expected, atol=1e-6)
    assert torch.equal(classes, logits.argmax(dim=1))
    assert torch.equal(step["class"], classes)
    assert evaluation.accuracy == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -0.6, 1e-30, 25.0, "0.6", [0.6], True])
def test_a_damaged_temperature_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"temperature in a\.ckpt to be a number from 0\.05 to 20"):
        stored_temperature({"temperature": value}, "a.ckpt")
