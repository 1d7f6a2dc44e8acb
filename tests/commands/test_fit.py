import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from tests.support import LAST, RUN, fit, refused, scalars

Capture = pytest.CaptureFixture[str]


def test_a_new_run_starts_from_the_weights_of_another(data_dir: str, capsys: Capture) -> None:
    first = fit(data_dir, "--model.activation", "tanh", "--seed_everything", "3")
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    capsys.readouterr()
    words = ["fit", "--init_from", str(RUN), "--trainer.max_steps", "1", "--optimizer.lr"]
    same = FNNCLI([*words, "1e-9", "--data.batch_size", "50"])
    assert f"weights    of {LAST}: 784–8, 8–10\n" in capsys.readouterr().out
    assert same.model.hparams["activation"] == "tanh"  # as in the other run
    assert (same.datamodule.batch_size, same.datamodule.seed) == (50, 3)
    assert same.trainer.global_step == 1
    assert same.trainer.log_dir != first.trainer.log_dir
    for name, value in same.model.state_dict().items():
        assert torch.allclose(value, weights[name], atol=1e-6)

    deeper = FNNCLI([*words, "1e-9", "--model.hidden_dims", "[8, 6]", "--model.dropout", "0.1"])
    assert f"weights    of {LAST}: 784–8; new: 8–6, 6–10\n" in capsys.readouterr().out
    kept, new = deeper.model.network.layers[0], deeper.model.network.layers[3]
    assert torch.allclose(kept.weight, weights["network.layers.0.weight"], atol=1e-6)
    assert new.weight.shape == (6, 8)

    error = refused([*words, "0.1", "--model.hidden_dims", "[9]"], capsys)
    assert "Expected layers of the same shape" in error
    assert "either --ckpt_path" in refused([*words, "0.1", "--ckpt_path", LAST], capsys)
    assert "holds no checkpoints" in refused(["fit", "--init_from", data_dir], capsys)


def test_a_restarted_job_resumes_instead_of_starting_from_other_weights(data_dir: str) -> None:
    fit(data_dir)
    job = ["fit", "--init_from", str(RUN), "--run_folder", "job", "--trainer.max_epochs"]
    main([*job, "1"])
    main([*job, "2"])
    state = torch.load("job/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 6
    assert [step for step, _ in scalars("job")["val/acc"]] == [3, 6]


def test_validation_on_the_test_set_says_so(data_dir: str, drawn: None, capsys: Capture) -> None:
    fit(data_dir, "--data.val_size", "0")
    assert "result     val/acc (on the test set) " in capsys.readouterr().out
    main(["validate", "--ckpt_path", LAST])
    assert "test set, which validation watches since val_size is 0: Got " in capsys.readouterr().out
    main(["test", "--ckpt_path", LAST])
    assert "val/acc (on the test set)" in (RUN / "report.html").read_text()
    events = EventAccumulator(str(RUN)).Reload()
    (note,) = events.Tensors("notes/text_summary")
    assert b"measured on the test set" in note.tensor_proto.string_val[0]


def test_layers_are_matched_within_the_network(data_dir: str, capsys: Capture) -> None:
    fit(data_dir)
    checkpoint = torch.load(LAST, weights_only=True)
    weights = checkpoint["state_dict"]
    others = {
        "class_weights": torch.ones(10),
        "second_head.weight": torch.ones(8, 784),
        "network.layers.9.bias": torch.ones(1),  # without a weight
    }
    torch.save({**checkpoint, "state_dict": others | weights}, "derived.ckpt")
    capsys.readouterr()
    cli = FNNCLI(["fit", "--init_from", "derived.ckpt", "--trainer.max_steps", "1",
                  "--optimizer.lr", "1e-9"])  # fmt: skip
    assert "weights    of derived.ckpt: 784–8, 8–10\n" in capsys.readouterr().out
    first = cli.model.network.layers[0].weight
    assert torch.allclose(first, weights["network.layers.0.weight"], atol=1e-6)


def test_a_timer_among_the_callbacks_is_saved(data_dir: str) -> None:
    timer = ["--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "00:00:10:00"]
    fit(data_dir, *timer)
    assert "interval: step" in (RUN / "config.yaml").read_text()
