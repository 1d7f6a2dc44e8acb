from pathlib import Path

import pytest

from fnn_lightning.evaluation.run_card import changed_settings, run_card
from fnn_lightning.lit_module import FNNLitModule
from tests.support import RUN, fit


def test_only_what_was_given_differs_from_the_defaults(data_dir: str) -> None:
    fit(data_dir)
    plain = changed_settings((RUN / "config.yaml").read_text())
    options = ["--optimizer", "Adam", "--optimizer.lr", "0.01", "--data.augmentation.shift", "1",
               "--ema.decay", "0.9", "--seed_everything", "3", "--run_folder", "other"]  # fmt: skip
    fit(data_dir, *options)
    other = changed_settings(Path("other/config.yaml").read_text())
    assert plain is not None
    assert other is not None
    assert {name: text for name, text in other.items() if name not in plain} == {
        "optimizer": "Adam",
        "optimizer.lr": "0.01",
        "data.augmentation.shift": "1",
        "ema.decay": "0.9",
        "seed_everything": "3",
    }


@pytest.mark.parametrize(
    "config", ["", "[]", "{", "a: " + "[" * 5000, "optimizer: 3", "model: {dropout: !!python/x 1}"]
)
def test_a_config_of_another_origin_says_nothing(config: str) -> None:
    assert changed_settings(config) is None


def test_settings_at_their_defaults_are_none() -> None:
    assert changed_settings("{trainer: {max_steps: -1, num_sanity_val_steps: 0}}") == {}
    assert changed_settings("{model: 3, data: {hidden: [x]}}") == {"data.hidden": "[x]"}


def test_the_card_says_what_the_run_was() -> None:
    module = FNNLitModule(
        hidden_dims=[8],
        dropout=0.1,
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.004, "fused": True}},
        lr_scheduler={"class_path": "torch.optim.lr_scheduler.ExponentialLR",
                      "init_args": {"gamma": 0.5}},
        warmup=20,
    )  # fmt: skip
    data = {"batch_size": 50, "seed": 2, "augmentation": {"rotation": 10, "shift": 0.0}}
    card = run_card(module, {"datamodule_hyper_parameters": data}, {"step": 1200, "seconds": "x"})
    assert card == {
        "network": "784–8–10 relu",
        "parameters": "6,370",
        "optimizer": "AdamW, lr 0.004, fused true",
        "schedule": "ExponentialLR, gamma 0.5, counted in epochs, after a warm-up of 20 steps",
        "recipe": "batches of 50, dropout 0.1, augmentation (rotation 10), seed 2",
        "epochs": "1,200 steps",
    }


def test_steps_to_adversarial_examples_are_named_where_there_are_some() -> None:
    card = run_card(FNNLitModule(adversarial_radius=2.5, adversarial_steps=3), {}, {})
    assert card["recipe"] == "adversarial examples at a distance of 2.5, found in 3 steps"
    assert "steps" not in run_card(FNNLitModule(adversarial_steps=3), {}, {})["recipe"]


def test_a_schedule_with_a_rate_of_its_own_leaves_one_rate_on_the_card() -> None:
    schedule = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.02, "total_steps": 9}}
    card = run_card(FNNLitModule(lr_scheduler=schedule), {}, {})
    assert card["optimizer"] == "SGD"
    assert card["schedule"].startswith("OneCycleLR, max_lr 0.02")
