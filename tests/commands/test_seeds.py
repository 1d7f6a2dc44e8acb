import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from fnn_lightning.commands import seeds
from fnn_lightning.commands.main import main
from fnn_lightning.commands.seeds_table import results_table
from fnn_lightning.runs.progress import StatusLine
from tests.runs.test_loggers import TRACKER
from tests.support import PARENT, STAND_IN, Start, ended, until


def rows(text: str) -> list[str]:
    """Split a table into lines, with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_table_marks_seeds_that_failed() -> None:
    text = results_table({"val/acc, %": {0: 95.0, 2: 96.0}, "val/loss": {0: 0.5}}, range(3))
    assert rows(text) == ["seed val/acc, % val/loss", "0 95.00 0.5000", "1 failed failed",
                          "2 96.00 failed"]  # fmt: skip
    assert results_table({}, range(1)).split() == ["seed", "0"]


def test_seeds_with_equal_results_have_no_interval() -> None:
    assert rows(results_table({"val/acc, %": {0: 95.0, 1: 95.0}}, range(2)))[3:] == [
        "mean ± standard deviation of 2 95.00 ± 0.00",
        "95 % interval of the mean unknown: all equal",
    ]


def test_the_table_gives_mean_deviation_and_interval(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "3", "--optimizer.lr", "2", "--test", "true"])
    out, err = capfd.readouterr()
    assert err == ""
    # 4.302653: Student's t with 2 degrees of freedom; the standard deviation is 1
    assert rows(out)[-7:-1] == [
        "seed best val/acc, % test/acc, %",
        "0 90.20 40.20",
        "1 91.20 41.20",
        "2 92.20 42.20",
        "mean ± standard deviation of 3 91.20 ± 1.00 41.20 ± 1.00",
        "95 % interval of the mean 88.72 to 93.68 38.72 to 43.68",
    ]
    assert "look at them: tensorboard --logdir seeds/version_0\n" in out

    main(["seeds", "4", "--folder", "seeds/version_0", "--optimizer.lr", "2"])
    again = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in again if line.startswith("seed ")] == ["3", "best"]
    assert again[-4].split() == ["3", "93.20"]


def test_a_line_is_printed_for_each_seed_and_its_output_kept(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "2", "--optimizer.lr", "2", "--test", "true"])
    out, err = capfd.readouterr()
    assert err == ""
    assert "\r" not in out
    lines = out.splitlines()
    assert lines[0] == "the output of each run goes to seeds/version_0/seed_*/output.txt"
    for line, expected in zip(
        lines[1:],
        (
            r"seed 0   best val/acc 90\.20 %   test/acc 40\.20 %   \d+ s   "
            r"\(1 of 2, about \d+ s left\)",
            r"seed 1   best val/acc 91\.20 %   test/acc 41\.20 %   \d+ s   \(2 of 2\)",
        ),
        strict=False,
    ):
        assert re.fullmatch(expected, line)
    run = Path("seeds/version_0/seed_1")
    assert (run / "output.txt").read_text() == (
        f"fit --config seeds/version_0/seeds.yaml --seed_everything 1 --run_folder {run}\n"
    )
    assert not (run / "errors.txt").exists()  # nothing was said


@pytest.fixture
def no_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins leave no nets to predict with: say what would predict."""
    monkeypatch.setattr(
        seeds, "write_out_of_fold", lambda folder, runs: print("predicts", folder, len(runs))
    )


def test_each_fold_validates_in_turn(
    stand_in: None, no_nets: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "2", "--data.folds", "3", "--test", "true"])
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "the output of each run goes to seeds/version_0/seed_*/fold_*/output.txt"
    assert re.fullmatch(
        r"seed 0 fold 1   best val/acc 90\.10 %   test/acc 40\.10 %   \d+ s   "
        r"\(2 of 6, about \d+ s left\)",
        lines[2],
    )
    # seed 0 of 90.0, 90.1 and 90.2; seed 1 of 91.0, 91.1 and 91.2
    assert rows(out)[7:] == [
        "seed best val/acc, % test/acc, %",
        "0 90.10 ± 0.10 40.10 ± 0.10",
        "1 91.10 ± 0.10 41.10 ± 0.10",
        "mean ± standard deviation of 2 90.60 ± 0.71 40.60 ± 0.71",
        "95 % interval of the mean 84.25 to 96.95 34.25 to 46.95",
        "of each seed: mean ± standard deviation of 3 folds, which validate in turn",
        "look at them: tensorboard --logdir seeds/version_0",
        "predicts seeds/version_0 6",
    ]
    run = Path("seeds/version_0/seed_1/fold_2")
    assert (run / "output.txt").read_text() == (
        "fit --config seeds/version_0/seeds.yaml --data.fold=2 --seed_everything 1 "
        f"--run_folder {run}\n"
    )

    main(["seeds", "3", "--folder", "seeds/version_0"])
    out = capfd.readouterr().out
    assert [line[:13] for line in out.splitlines() if line.startswith("seed 2 ")] == [
        "seed 2 fold 0",
        "seed 2 fold 1",
        "seed 2 fold 2",
    ]
    assert "seed 0 fold" not in out
    assert "2 92.10 ± 0.10" in rows(out)


def test_one_fold_is_trained_with_each_seed(
    stand_in: None, no_nets: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "2", "--data.folds", "3", "--data.fold", "1"])
    out = capfd.readouterr().out
    assert "predicts" not in out
    assert sorted(path.name for path in Path("seeds/version_0/seed_1").iterdir()) == [
        "began",
        "metrics.json",
        "output.txt",
    ]


def test_a_seed_without_one_of_its_folds_has_no_result(
    stand_in: None, no_nets: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "1", "--data.folds", "2"])
    run = Path("seeds/version_0/seed_1/fold_0")
    run.mkdir(parents=True)
    (run / "diverge").touch()
    capfd.readouterr()
    with pytest.raises(SystemExit, match="1"):
        main(["seeds", "2", "--folder", "seeds/version_0"])
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == (
        "error: seed 1 fold 0 failed; see output.txt and errors.txt in "
        "seeds/version_0/seed_*/fold_*"
    )
    assert {"0 90.05 ± 0.07", "1 failed"} <= set(rows(out))


def test_a_terminal_shows_which_seed_is_trained(
    stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(StatusLine, "show", lambda self, text: shown.append(text))
    main(["seeds", "2"])
    assert "checking the settings …" in shown
    assert any(re.fullmatch(r"seed 0 \(1 of 2\), \d+ s so far", text) for text in shown)
    assert any(re.fullmatch(r"seed 1 \(2 of 2\), about \d+ s left", text) for text in shown)


def test_other_settings_need_another_folder(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "1", "--folder", "new", "--data.val_size", "0"])
    assert "validation is the test set" in capfd.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main(["seeds", "2", "--folder", "new", "--data.val_size", "0", "--optimizer.lr", "3"])
    assert exit_info.value.code == 2
    assert capfd.readouterr().err == (
        "error: Expected the settings of new/seeds.yaml, with which the runs in that folder began, "
        "but got lr: 3: name another --folder\n"
    )
    assert not Path("new/seed_1").exists()


def test_a_failed_seed_does_not_stop_the_others(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", "1"])
    Path("seeds/version_0/seed_2").mkdir()
    Path("seeds/version_0/seed_2/diverge").touch()
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(["seeds", "4", "--folder", "seeds/version_0"])
    assert exit_info.value.code == 1
    out, err = capfd.readouterr()
    assert err.splitlines() == [
        "error: The loss is no longer finite",
        "error: seed 2 failed; see output.txt and errors.txt in seeds/version_0/seed_*",
    ]
    assert "seed 2   failed   " in out
    assert Path("seeds/version_0/seed_2/errors.txt").read_text() == (
        "error: The loss is no longer finite\n"
    )
    # of 90, 91 and 93
    expected = {"2 failed", "3 93.00", "mean ± standard deviation of 3 of 4 91.33 ± 1.53"}
    assert expected <= set(rows(out))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["0"], "Expected `seeds` to be 1 or more, but got 0"),
        ([], "seeds"),
        (["2", "--seed_everything=3"], "Expected no --seed_everything, which `seeds` sets itself"),
        (["2", "--run_folder", "x"], "Expected no --run_folder"),
        (["2", "--folder", "file"], "Expected --folder to be a folder, but got file: it is a file"),
        (["2", "--folder", "other"], "Expected --folder to be new, empty or one of earlier seeds"),
        (["2", "--find_lr", "true"], "find one with `fit`, and give it as --optimizer.lr"),
        (["2", "--trainer.logger=false"], "leave results, but got --trainer.logger false"),
        (["2", "--bad"], "error: Expected nothing bad\n"),  # the parser refuses it
        (
            ["2", "--optimizer.lr", "20"],
            "error: Expected something else\n",
        ),  # only the run refuses it
        (["2", "--optimizer.lr", "20", "--data.folds", "3"], "error: Expected something else\n"),
        (["2", "--data.folds", "1"], "Expected `folds` to be from 2 to 1,000, but got 1\n"),
        (["2", "--data.folds=1000000000"], "from 2 to 1,000, but got 1000000000\n"),
        (["2", "--test", "maybe"], "Expected `test` to be bool"),
        (
            ["2", "--first", "-1"],
            "Expected seeds from 0 to 4294967295, but got 2 from --first -1\n",
        ),
    ],
)
def test_bad_arguments_end_in_one_line(
    stand_in: None, capfd: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    Path("file").touch()
    Path("other").mkdir()
    Path("other/notes").touch()
    with pytest.raises(SystemExit) as exit_info:
        main(["seeds", *argv])
    assert exit_info.value.code == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(Path().rglob("seeds.yaml"))
    assert not list(Path().rglob("version_*"))


def test_a_stopped_command_can_be_resumed(start: Start) -> None:
    Path("hold").touch()
    run = start("-c", PARENT, STAND_IN, "seeds", "2")
    until(Path("seeds/version_0/seed_0/began"))
    second = start("-c", PARENT, STAND_IN, "seeds", "2", "--folder", "seeds/version_0")
    status, _, err = ended(second)
    assert (status, err) == (
        2,
        "error: Expected seeds/version_0 to be free, but a run in it has not ended yet\n",
    )
    run.send_signal(signal.SIGTERM)
    status, _, err = ended(run)
    assert status == 128 + signal.SIGTERM
    assert err.splitlines() == [
        "stopped by SIGTERM, saved",
        "stopped by SIGTERM; resume with: python -m fnn_lightning seeds 2 --folder seeds/version_0",
    ]
    Path("hold").unlink()
    status, out, err = ended(
        start("-c", PARENT, STAND_IN, "seeds", "2", "--folder", "seeds/version_0")
    )
    assert (status, err) == (0, "")
    assert "90.50 ± 0.71" in out


def test_a_stopped_command_resumes_in_the_fold_where_it_stopped(start: Start) -> None:
    parent = PARENT.replace(
        "main.main(",
        "from fnn_lightning.commands import seeds; "
        "seeds.write_out_of_fold = lambda folder, runs: print('predicts', len(runs)); main.main(",
    )
    argv = ["-c", parent, STAND_IN, "seeds", "1", "--folder", "new", "--test", "true"]
    argv += ["--first", "7"]
    Path("hold_fold_1").touch()
    run = start(*argv, "--data.folds", "3")
    until(Path("new/seed_7/fold_1/began"))
    run.send_signal(signal.SIGTERM)
    status, out, err = ended(run)
    assert status == 128 + signal.SIGTERM
    resume = "python -m fnn_lightning seeds 1 --folder new --first 7 --test true"
    assert err.endswith(f"resume with: {resume}\n")
    assert "predicts" not in out
    Path("hold_fold_1").unlink()
    status, out, err = ended(start(*argv[:-2]))  # the folder tells the first seed
    assert (status, err) == (0, "")
    assert rows(out)[-5:] == [
        "seed best val/acc, % test/acc, %",
        "7 97.10 ± 0.10 47.10 ± 0.10",
        "of each seed: mean ± standard deviation of 3 folds, which validate in turn",
        "look at them: tensorboard --logdir new",
        "predicts 3",
    ]
    outputs = [Path(f"new/seed_7/fold_{fold}/output.txt").read_text() for fold in range(3)]
    assert [text.count("\n") for text in outputs] == [1, 2, 1]  # as often as it was started


def test_a_second_interrupt_ends_at_once(start: Start) -> None:
    Path("hold").touch()
    Path("ignore").touch()
    run = start("-c", PARENT, STAND_IN, "seeds", "1")
    until(Path("seeds/version_0/seed_0/began"))
    run.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(1)
    run.send_signal(signal.SIGINT)
    status, _, err = ended(run, 10)
    assert (status, err) == (130, "interrupted\n")


@pytest.mark.soak
def test_a_real_seed_beside_a_tracker_equals_a_single_fit(
    data_dir: str, forked_runs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    fit_argv = ["--data.data_dir", data_dir, "--trainer.max_epochs", "2", "--model.hidden_dims=[8]"]
    fit_argv += TRACKER
    main(["seeds", "2", "--test", "true", *fit_argv, "--checkpoint.monitor", "val/acc"])
    last = rows(capfd.readouterr().out)[-6:]
    main(["fit", *fit_argv, "--seed_everything", "1", "--run_folder", "alone",
          "--checkpoint.monitor", "val/acc"])  # fmt: skip
    main(["test", "--ckpt_path", "alone/checkpoints/best.ckpt"])
    alone = json.loads(Path("alone/metrics.json").read_text())
    score, accuracy = alone["fit"]["best"]["score"], alone["test"]["accuracy"]
    assert last[0] == "seed best val/acc, % test/acc, %"
    assert last[2] == f"1 {100 * score:.2f} {100 * accuracy:.2f}"


@pytest.mark.soak
def test_real_folds_predict_every_training_image(
    data_dir: str, forked_runs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data.data_dir", data_dir, "--trainer.max_epochs", "2", "--model.hidden_dims=[8]"]
    main(["seeds", "2", "--data.folds", "2", "--test", "true", *argv])
    out, err = capfd.readouterr()
    assert err == ""
    assert re.search(r"out of fold: \d+ of 300 training images correct \(.*averaged over 2", out)
    assert Path("seeds/version_0/out_of_fold.csv").read_text().count("\n") == 301
