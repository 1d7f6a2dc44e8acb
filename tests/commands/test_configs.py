import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fnn_lightning import MNISTDataModule
from fnn_lightning.commands.configs import describe
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from tests.support import CONFIGS, refused

NOT_RUN = ("fashion_mnist",)  # its data were out of reach
RECIPES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.stem)
def test_every_config_trains(config: Path, data_dir: str, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    shutil.copytree(Path(data_dir, "MNIST"), Path(data_dir, "FashionMNIST"))
    limits = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "1"]
    limits += ["--data.data_dir", data_dir]
    for teacher in yaml.safe_load(config.read_text()).get("model", {}).get("teachers", []):
        options = ["--config", "record", "--run_folder", teacher, "--tensorboard.enabled=false"]
        main(["fit", *options, *limits])
    main(["fit", "--config", str(config), *limits])
    assert "3 steps in all" in capsys.readouterr().out
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.stem)
def test_every_config_says_how_to_run_it_and_what_to_expect(config: Path) -> None:
    lines = config.read_text().splitlines()
    commands = [line for line in lines if line.startswith("# fnn ")]
    assert commands == lines[: len(commands)]
    assert commands[-1] == f"# fnn fit --config {config.stem}"
    network, accuracy, time = describe(config)
    assert network.startswith("784–")
    if config.stem in NOT_RUN:
        assert (accuracy, time) == ("not run", "")
        return
    assert float(accuracy.removeprefix("over ")) > 90
    assert re.search("seconds|minute", time)


def test_permutation_invariant_trains_as_well_on_shuffled_pixels(data_dir: str) -> None:
    data = MNISTDataModule(data_dir=data_dir)
    data.setup()
    order = torch.randperm(784, generator=torch.Generator().manual_seed(0))
    arrays: dict[str, Any] = {}
    for part, loader in (("train", data.serve("train", 300)), ("test", data.serve("test", 100))):
        arrays[f"x_{part}"] = loader.images.flatten(1)[:, order].numpy()
        arrays[f"y_{part}"] = loader.labels.numpy()
    np.savez("shuffled.npz", **arrays)
    config = str(CONFIGS / "permutation_invariant.yaml")
    # without dropout of the input, which treats all pixels alike, but draws another mask for each
    options = ["fit", "--config", config, "--ema.decay=0", "--model.input_dropout=0"]
    options += ["--data.val_size=100", "--data.data_dir", data_dir]
    # the order of a sum changes its rounding, which in `float32` the steps would magnify
    options += ["--trainer.precision=64-true"]
    first = "first/checkpoints/last.ckpt"
    FNNCLI([*options, "--run_folder", "first", "--trainer.max_steps=1"])
    checkpoint = torch.load(first, weights_only=True)
    weight = checkpoint["state_dict"]["network.layers.0.weight"]
    checkpoint["state_dict"]["network.layers.0.weight"] = weight[:, order]
    torch.save(checkpoint, "shuffled.ckpt")

    logits = []
    for dataset, begin, pixels in (
        ("mnist", first, torch.arange(784)),
        ("shuffled.npz", "shuffled.ckpt", order),
    ):
        new = ["--data.dataset", dataset, "--init_from", begin, "--trainer.max_steps=20"]
        network = FNNCLI([*options, *new]).model.network
        logits.append(network(data.serve("test", 100).images.flatten(1)[:, pixels]))
    assert (logits[0].argmax(1) == data.serve("test", 100).labels).float().mean() > 0.5
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-6, atol=1e-6)


def test_a_config_of_the_package_is_found_by_its_name_in_any_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def settings(*words: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *words, "--print_config"])
        return capsys.readouterr().out

    by_path = settings("--config", str(CONFIGS / "tanh_100.yaml"))
    assert "activation: tanh" in by_path
    assert settings("--config", "tanh_100") == by_path
    Path("relu_100").mkdir()
    assert settings("-c", "relu_100") == settings(f"--config={CONFIGS / 'relu_100.yaml'}")
    Path("tanh_100").write_text("model: {activation: sigmoid}\n")  # the user's own wins
    assert "activation: sigmoid" in settings("--config=tanh_100")


def test_an_unknown_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["fit", "--config", "tanh_10"], capsys)
    assert "Expected --config to be a YAML file, but got 'tanh_10'" in error
    assert "did you mean tanh_100?" in error
    assert "configs` lists those with a name" in refused(["fit", "-c", "x.yaml"], capsys)
    error = refused(["configs", "nmist"], capsys)
    assert "Expected the name of a config, but got 'nmist'; did you mean mnist?" in error
    assert "Expected the name of one config" in refused(["configs", "mnist", "fast99"], capsys)


def test_configs_lists_them_all_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["config", "network", "accuracy,", "%", "time", "on", "2", "cores"]
    assert [line.split()[0] for line in lines] == [config.stem for config in RECIPES]
    assert max(map(len, [title, *lines])) <= 80
    assert "784–128–128–64–64–10 relu" in "".join(lines)
    assert ["fashion_mnist", "784–512–512–10", "gelu", "not", "run"] in map(str.split, lines)
    main(["configs", "mnist"])
    assert capsys.readouterr().out == (CONFIGS / "mnist.yaml").read_text()


def test_fashion_mnist_is_trained_as_mnist_is() -> None:
    recipes = [
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        for name in ("mnist", "fashion_mnist")
    ]
    assert recipes[1]["data"].pop("dataset") == "fashion_mnist"
    assert recipes[0] == recipes[1]
