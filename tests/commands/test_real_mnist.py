"""Runs the tutorials' ReLU network on the real MNIST."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fnn_lightning.commands.main import main
from fnn_lightning.data.published import raw_dir
from tests.support import CONFIGS

CONFIG = CONFIGS / "relu_100.yaml"
REFERENCE = 95.69  # %, mean of five seeds of the same training as a plain PyTorch loop


def read(path: Path, offset: int) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8, offset=offset)


def test_relu_100_reaches_its_reference_and_numpy_agrees_to_the_image(
    real_data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(CONFIG), "--data.data_dir", real_data_dir])
    printed = [line for line in capsys.readouterr().out.splitlines() if " %    " in line]
    assert len(printed) == 6
    checkpoint = "lightning_logs/version_0/checkpoints/last.ckpt"
    main(["test", "--ckpt_path", checkpoint])
    tested = capsys.readouterr().out

    # the same network by hand, from the weights in the file
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    w1, b1, w2, b2 = (weight.double().numpy() for weight in weights.values())
    raw = raw_dir(real_data_dir)
    images = read(raw / "t10k-images-idx3-ubyte", 16).reshape(10_000, 784)
    labels = read(raw / "t10k-labels-idx1-ubyte", 8)
    logits = np.maximum(images / 255 @ w1.T + b1, 0) @ w2.T + b2
    correct = int((logits.argmax(1) == labels).sum())

    assert f"Got {correct:,} / 10,000 correct ({correct / 100:.2f} %)" in tested
    assert f"  {correct / 100:.2f} %  " in printed[-1]
    assert abs(correct / 100 - REFERENCE) < 0.6


def test_the_files_are_those_that_torchvision_knows(real_data_dir: str) -> None:
    digests = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    for name, digest in digests.items():
        content = (raw_dir(real_data_dir) / name).read_bytes()
        assert hashlib.md5(content).hexdigest() == digest
