import os
import re
import signal
import socket
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from sqlalchemy import event, make_url
from sqlalchemy.pool import NullPool, Pool

from fnn_lightning.commands.main import main
from fnn_lightning.commands.sweep_space import first_value, fit_options, read_space
from fnn_lightning.errors import InputError
from fnn_lightning.runs.progress import StatusLine
from tests.support import CONFIGS, PARENT, STAND_IN, Start, ask, ended, until

SPACES = sorted((CONFIGS / "sweep").glob("*.yaml"))
SPACE = "optimizer.lr: {low: 1e-4, high: 1, log: true}\nmodel.activation: {choices: [relu, tanh]}"


@pytest.fixture(autouse=True)
def _space() -> None:
    Path("space.yaml").write_text(SPACE)


def trials(folder: str) -> list[optuna.trial.FrozenTrial]:
    return stored(folder, f"sqlite:///{folder}/sweep.db")


def stored(folder: str, url: str) -> list[optuna.trial.FrozenTrial]:
    storage = RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    return optuna.load_study(study_name=Path(folder).name, storage=storage).trials


def read(text: str) -> Any:
    Path("space.yaml").write_text(text)
    return read_space(Path("space.yaml"))


def test_a_space_becomes_distributions_and_options() -> None:
    space = read(
        "depth: {choices: [2, 0]}\n"
        "width: {low: 8, high: 64, log: true}\n"
        "data.batch_size: {low: 50, high: 150, step: 50}\n"
        "optimizer.lr: {low: 1e-4, high: 1, log: true}\n"
        "optimizer.momentum: {low: 0.0, high: 0.9, step: 0.3}\n"
        "model.lr_interval: {choices: [epoch, step]}\n"
        "model.multi_step: {choices: [true, false]}\n"
    )
    assert space == {
        "depth": CategoricalDistribution(["2", "0"]),
        "width": IntDistribution(8, 64, log=True),
        "data.batch_size": IntDistribution(50, 150, step=50),
        "optimizer.lr": FloatDistribution(0.0001, 1.0, log=True),
        "optimizer.momentum": FloatDistribution(0.0, 0.9, step=0.3),
        "model.lr_interval": CategoricalDistribution(["epoch", "step"]),
        "model.multi_step": CategoricalDistribution(["true", "false"]),
    }
    assert fit_options({name: first_value(values) for name, values in space.items()}) == [
        "--data.batch_size=50",
        "--optimizer.lr=0.0001",
        "--optimizer.momentum=0.0",
        "--model.lr_interval=epoch",
        "--model.multi_step=true",
        "--model.hidden_dims=[8, 8]",
    ]
    assert fit_options({"depth": "0", "width": 9}) == ["--model.hidden_dims=[]"]


def test_choices_may_be_lists_or_null() -> None:
    space = read("model.hidden_dims: {choices: [[], [100, 50]]}\nlr_scheduler: {choices: [null]}")
    assert space["model.hidden_dims"] == CategoricalDistribution(["[]", "[100, 50]"])
    assert fit_options({"model.hidden_dims": "[100, 50]"}) == ["--model.hidden_dims=[100, 50]"]
    assert space["lr_scheduler"].choices == ("null",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "to map options to values, but got None"),
        ("- a", "to map options to values"),
        ("a: [1", "to be a YAML file, but it is not"),
        ("a: 1", r"Expected `a` in the space to be \{choices"),
        ("a: {choices: [1], low: 1}", r"Expected `a` in the space to be \{choices"),
        ("a: {low: 1}", r"Expected `a` in the space to be \{choices"),
        ("a: {low: 1, high: 2, lgo: true}", r"Expected `a` in the space to be \{choices"),
        ("a: {choices: []}", "Expected `choices` of `a` to be a list"),
        ("a: {choices: relu}", "Expected `choices` of `a` to be a list, but got 'relu'"),
        ("a: {choices: [1, 2, 1]}", "Expected each of `choices` of `a` once"),
        ("a: {low: 2, high: 1}", "Expected `low` of `a` to be at most 1, but got 2"),
        ("a: {low: x, high: 1}", "Expected `low` of `a` to be a number, but got 'x'"),
        ("a: {low: 0, high: .inf}", "Expected `high` of `a` to be a number"),
        ("a: {low: true, high: 3}", "Expected `low` of `a` to be a number, but got True"),
        ("a: {low: 0, high: 1, log: true}", "Expected `low` of `a` to be positive with log"),
        ("a: {low: 0, high: 1, log: 1}", "Expected `log` of `a` to be true or false"),
        ("a: {low: 1, high: 8, log: true, step: 2}", "Expected `step` of `a` to be positive"),
        ("a: {low: 1, high: 8, step: 0}", "Expected `step` of `a` to be positive"),
        ("a: {low: 1, high: 8, step: 0.5}", "Expected another range of `a`"),
        ("a: {low: 1, high: 8, step: 2}", "Expected another range of `a`.*not divisible"),
        ("data.fold: {choices: [0, 1]}", "Expected no `data.fold` in .*: it cannot be searched"),
        ("run_folder: {choices: [x]}", "Expected no `run_folder`"),
        ("checkpoint.monitor: {choices: [val/loss]}", "Expected no `checkpoint.monitor`"),
        ("depth: {low: 1, high: 2}", "Expected `depth` and `width` together"),
        ("depth: {low: 0.5, high: 2}\nwidth: {low: 1, high: 2}", "`depth` .* integers from 0"),
        ("depth: {low: 1, high: 2}\nwidth: {choices: [0]}", "`width` .* integers from 1"),
        ("depth: {low: 1, high: 2}\nwidth: {low: 1, high: 2}\nmodel.hidden_dims: {choices: [[]]}",
         "or `model.hidden_dims` instead"),
    ],
)  # fmt: skip
def test_a_bad_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_missing_space_is_refused() -> None:
    with pytest.raises(InputError, match="Expected --space to be a YAML file, but got 'missing'"):
        read_space(Path("missing"))


def test_a_resumed_sweep_draws_the_same_trials(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["sweep", "--space", "space.yaml", "--model.pixel_mean", "0.1"]
    main([*argv, "--trials", "3"])
    out, err = capfd.readouterr()
    assert err == ""
    found = trials("sweeps/version_0")
    assert [trial.number for trial in found] == [0, 1, 2]
    for trial in found:
        lr, activation = trial.params["optimizer.lr"], trial.params["model.activation"]
        assert trial.value == 0.9 + lr / 1000
        run = f"sweeps/version_0/trial_000{trial.number}"
        assert Path(run, "output.txt").read_text() == (
            f"fit --model.pixel_mean 0.1 --optimizer.lr={lr} --model.activation={activation} "
            f"--checkpoint.monitor=val/acc --run_folder {run}\n"
        )
        assert f"trial    {trial.number}   val/acc {100 * lr / 1000 + 90:.2f} %   1.5 s" in out
    ends = [line.rpartition("   (")[2] for line in out.splitlines() if line.startswith("trial  ")]
    best = 90 + max(float(trial.params["optimizer.lr"]) for trial in found) / 10
    assert re.fullmatch(r"1 of 3, best 90\.\d\d %, about \d+ s left\)", ends[0])
    assert ends[2] == f"3 of 3, best {best:.2f} %)"
    best = max(found, key=lambda trial: float(trial.params["optimizer.lr"])).number
    assert (
        "test the best  python -m fnn_lightning test --ckpt_path "
        f"sweeps/version_0/trial_000{best}/checkpoints/best.ckpt\n"
    ) in out
    assert "look at all    tensorboard --logdir sweeps/version_0\n" in out

    main([*argv, "--trials", "5", "--folder", "sweeps/version_0"])
    found = trials("sweeps/version_0")
    assert len(found) == 5
    # resumed: the first draws are still random, and different
    assert len({trial.params["optimizer.lr"] for trial in found}) == 5

    # the same trials as without an interruption
    main([*argv, "--trials", "5"])
    assert [t.params for t in trials("sweeps/version_1")] == [t.params for t in found]


def test_a_trial_is_judged_by_the_mean_over_its_folds(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["sweep", "--space", "space.yaml", "--trials", "2", "--data.folds", "3"])
    out, err = capfd.readouterr()
    assert err == ""
    found = trials("sweeps/version_0")
    for trial in found:
        lr, activation = trial.params["optimizer.lr"], trial.params["model.activation"]
        assert trial.value == pytest.approx(0.9 + lr / 1000 + 0.001)  # of folds 0, 1 and 2
        folder = f"sweeps/version_0/trial_000{trial.number}"
        assert Path(folder, "output.txt").read_text() == "".join(
            f"fit --data.folds 3 --optimizer.lr={lr} --model.activation={activation} "
            f"--data.fold={fold} --checkpoint.monitor=val/acc --run_folder {folder}/fold_{fold}\n"
            for fold in range(3)
        )
        assert f"   val/acc {100 * lr / 1000 + 90.1:.2f} %   4.5 s" in out
    best = max(found, key=lambda trial: float(trial.params["optimizer.lr"])).params
    assert (
        "train the best python -m fnn_lightning fit --data.folds 3 "
        f"--optimizer.lr={best['optimizer.lr']} --model.activation={best['model.activation']} "
        "--data.folds=null\n"
    ) in out


def test_a_trial_fails_with_its_first_fold_that_does(stand_in: None) -> None:
    Path("space.yaml").write_text("optimizer.lr: {choices: [-1]}")
    with pytest.raises(SystemExit, match="1"):
        main(["sweep", "--space", "space.yaml", "--trials", "1", "--data.folds", "3"])
    assert [path.name for path in Path("sweeps/version_0/trial_0000").glob("fold_*")] == ["fold_0"]
    assert trials("sweeps/version_0")[0].user_attrs["reason"] == "The loss is no longer finite"


def test_a_terminal_shows_how_far_a_sweep_is(
    stand_in: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(StatusLine, "show", lambda self, text: shown.append(text))
    Path("space.yaml").write_text("optimizer.lr: {choices: [0.5, -1]}")
    main(["sweep", "--space", "space.yaml", "--trials", "4"])
    assert "checking the settings …" in shown
    assert any(re.fullmatch(r"0 of 4 trials, \d+ s so far, 1 running", text) for text in shown)
    found = trials("sweeps/version_0")
    failed = sum(trial.state.name == "FAIL" for trial in found[:3])
    last = [text for text in shown if text.startswith("3 of 4 trials, about ")][-1]
    assert last.endswith(f" left, {failed} failed, 1 running, best 90.05 %: lr=0.5")


def test_failed_trials_are_recorded_with_their_reason(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text("optimizer.lr: {choices: [0.5, -1, 20]}")
    main(["sweep", "--space", "space.yaml", "--trials", "12", "--workers", "2"])
    out = capfd.readouterr().out
    found = trials("sweeps/version_0")
    assert len(found) == 12
    reasons = {
        (trial.params["optimizer.lr"], trial.state.name, trial.user_attrs.get("reason"))
        for trial in found
    }
    assert reasons == {
        ("0.5", "COMPLETE", None),
        ("-1", "FAIL", "The loss is no longer finite"),
        ("20", "FAIL", "Expected something else"),
    }
    failed = sum(trial.state.name == "FAIL" for trial in found)
    assert f"the best of 12 trials, {failed} of which failed\n" in out
    assert out.count("   failed: ") == failed


def test_a_sweep_fails_if_all_trials_do(stand_in: None, capfd: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text("optimizer.lr: {choices: [-1]}")
    with pytest.raises(SystemExit) as exit_info:
        main(["sweep", "--space", "space.yaml", "--trials", "2"])
    assert exit_info.value.code == 1
    assert capfd.readouterr().err == (
        "error: all 2 trials failed; see sweeps/version_0/trial_*/output.txt\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--space", "space.yaml", "--folder", "x", "--storage", "sqlite://"],
         "Expected --storage to be a file or a server, but got sqlite://: it is lost at the end"),
        (["--space", "missing.yaml"], "Expected --space to be a YAML file"),
        ([], "space"),
        (["--space", "space.yaml", "--trials", "0"], "Expected `trials` to be 1 or more"),
        (["--space", "space.yaml", "--workers", "-1"], "Expected `workers` to be 1 or more"),
        (["--space", "space.yaml", "--trails", "3", "--bad"], "error: Expected nothing bad\n"),
        (["--space", "space.yaml", "--data.val_size=0"], "error: Nothing is selected by it\n"),
        (["--space", "space.yaml", "--data.folds=0"],
         "error: Expected `folds` to be from 2 to 1,000, but got 0\n"),
        (["--space", "space.yaml", "--run_folder=x"],
         "Expected no --run_folder, which `sweep` sets itself"),
        (["--space", "space.yaml", "--checkpoint.monitor", "val/loss"], "Expected no --checkpoint"),
        (["--space", "space.yaml", "--storage", "sqlite:///x.db"], "Expected --folder beside"),
        (["--space", "space.yaml", "--folder", "x", "--storage", "nonsense"],
         "Expected --storage to be a database that can be used, but got: "),
        (["--space", "space.yaml", "--folder", "x", "--storage", "sqlite:////no/such/x.db"],
         "unable to open database file"),
        (["--space", "space.yaml", "--folder", "x", "--storage", "oracle://a@b/c"],
         "Expected --storage to be a database that can be used, but got: "),
    ],
)  # fmt: skip
def test_bad_arguments_end_in_one_line(
    stand_in: None, capfd: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["sweep", *argv])
    assert exit_info.value.code == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"space.yaml"}


def test_without_optuna_the_message_says_how_to_install_it(
    stand_in: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "--space", "space.yaml"])
    assert capfd.readouterr().err.endswith("pip install -e '.[sweep]'\n")


def test_another_space_or_storage_is_refused(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["sweep", "--space", "space.yaml", "--folder", "new", "--trials"]
    main([*argv, "1"])
    Path("space.yaml").write_text(SPACE.replace("tanh", "gelu"))
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "2"])
    assert "Expected the settings of new/space.yaml" in capfd.readouterr().err
    Path("space.yaml").write_text(SPACE)
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "2", "--storage", "sqlite:///other.db"])
    assert (
        "but the folder holds trial_0000, which the storage does not know" in capfd.readouterr().err
    )
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "2", "--folder", "elsewhere/new", "--storage", "sqlite:///new/sweep.db"])
    assert "the storage already has one named new" in capfd.readouterr().err
    assert not Path("elsewhere/new").exists()
    assert len(trials("new")) == 1


def test_a_storage_may_lie_in_the_home_directory(
    stand_in: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    main(["sweep", "--space", "space.yaml", "--trials", "1", "--folder", "~/new",
          "--storage", "sqlite:///~/sweeps.db"])  # fmt: skip
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"new", "sweeps.db"}


def test_a_sweep_resumes_in_the_fold_where_it_stopped(start: Start) -> None:
    argv = ["-c", PARENT, STAND_IN, "sweep", "--space", "space.yaml", "--trials", "1"]
    argv += ["--folder", "new", "--data.folds", "3"]
    Path("hold_fold_1").touch()
    run = start(*argv)
    first, second, third = (Path(f"new/trial_0000/fold_{fold}") for fold in range(3))
    until(second / "began")
    run.send_signal(signal.SIGTERM)
    status, _, err = ended(run)
    assert (status, err.count("resume with")) == (143, 1)
    assert [trial.state.name for trial in trials("new")] == ["RUNNING"]
    assert not third.exists()
    Path("hold_fold_1").unlink()
    status, _, err = ended(start(*argv))
    assert (status, err) == (0, "")
    (trial,) = trials("new")
    assert trial.value == pytest.approx(0.9 + trial.params["optimizer.lr"] / 1000 + 0.001)
    words = Path("new/trial_0000/output.txt").read_text().split()
    assert [words.count(str(each)) for each in (first, second, third)] == [1, 2, 1]


def test_a_sweep_stopped_or_killed_can_be_resumed(start: Start) -> None:
    Path("space.yaml").write_text(SPACE)
    Path("hold").touch()
    argv = ["-c", PARENT, STAND_IN, "sweep", "--space", "space.yaml", "--trials", "3"]
    argv += ["--workers", "2", "--folder", "a sweep"]

    run = start(*argv)
    until(Path("a sweep/trial_0001/began"))
    run.send_signal(signal.SIGTERM)
    status, out, err = ended(run)
    assert (status, out) == (143, "")
    assert err == (
        "stopped by SIGTERM; resume with: python -m fnn_lightning sweep --space space.yaml "
        "--trials 3 --workers 2 --folder 'a sweep'\n"
    )
    assert [trial.state.name for trial in trials("a sweep")] == ["RUNNING", "RUNNING"]
    params = [trial.params for trial in trials("a sweep")]
    for number in (0, 1):
        Path(f"a sweep/trial_000{number}/began").unlink()

    run = start(*argv)
    until(Path("a sweep/trial_0001/began"))
    run.kill()
    run.wait()
    # the trials that it has started run on, and nobody else takes them
    joined = start(*argv)
    until(Path("a sweep/trial_0002/began"))
    Path("hold").unlink()
    status, out, err = ended(joined)
    ended(run)
    assert (status, err) == (0, "")
    found = trials("a sweep")
    assert [trial.params for trial in found[:2]] == params
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    for number, starts in ((0, 2), (1, 2), (2, 1)):
        output = Path(f"a sweep/trial_000{number}/output.txt").read_text()
        assert output.count("fit ") == starts


def test_two_processes_share_the_trials(start: Start) -> None:
    Path("space.yaml").write_text(SPACE)
    argv = ["-c", PARENT, STAND_IN, "sweep", "--space", "space.yaml", "--trials", "7"]
    argv += ["--folder", "joint", "--storage", "sqlite:///joint.db"]
    results = [ended(run) for run in [start(*argv) for _ in range(2)]]
    assert [(status, err) for status, _, err in results] == [(0, "")] * 2
    assert all("the best of 7 trials, 0 of which failed" in out for _, out, _ in results)
    own = [sum(line.startswith("trial  ") for line in out.splitlines()) for _, out, _ in results]
    assert len(list(Path("joint").glob("trial_*"))) == 7
    assert sum(own) == 7 + 2  # and the header of each table


def test_no_connection_to_the_database_stays_open(
    stand_in: None, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: set[int] = set()
    listeners = {
        "connect": lambda connection, _: opened.add(id(connection)),
        "close": lambda connection, _: opened.remove(id(connection)),
    }
    for name, listener in listeners.items():
        event.listen(Pool, name, listener)
    try:
        argv = ["sweep", "--space", "space.yaml", "--folder", "new"]
        main([*argv, "--trials", "2"])
        assert not opened
        with closing(sqlite3.connect("new/sweep.db")) as database, database:
            database.execute("UPDATE alembic_version SET version_num = 'later'")
        with pytest.raises(SystemExit, match="2"):
            main([*argv, "--trials", "3"])
        Path("no.db").write_text("no database, but long enough to look like one")
        with pytest.raises(SystemExit, match="2"):
            main([*argv[:-1], "other", "--storage", "sqlite:///no.db"])
    finally:
        for name, listener in listeners.items():
            event.remove(Pool, name, listener)
    assert not opened
    err = capfd.readouterr().err.splitlines()
    assert [line.startswith("error: Expected --storage to be a database") for line in err] == [
        True
    ] * 2
    assert "Please try updating optuna" in err[0]
    assert "file is not a database" in err[1]


def test_a_worker_on_postgresql_takes_over_the_trials_of_one_that_was_killed(
    postgres: str, start: Start
) -> None:
    Path("hold").touch()
    argv = ["-c", PARENT, STAND_IN, "sweep", "--space", "space.yaml", "--trials", "6"]
    argv += ["--workers", "2", "--folder", "joint", "--storage", postgres]
    until_listening(postgres)
    workers = [start(*argv) for _ in range(2)]
    for number in range(4):
        until(Path(f"joint/trial_000{number}/began"))
    os.killpg(workers[0].pid, signal.SIGKILL)
    workers[0].communicate()
    before = stored("joint", postgres)
    assert [trial.state.name for trial in before] == ["RUNNING"] * 4

    Path("hold").unlink()
    status, out, err = ended(workers[1])
    assert (status, err) == (0, "")
    assert "the best of 6 trials, 0 of which failed" in out
    after = stored("joint", postgres)
    assert [trial.number for trial in after] == list(range(6))
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 6
    assert [trial.params for trial in after[:4]] == [trial.params for trial in before]
    outputs = [Path(f"joint/trial_000{number}/output.txt").read_text() for number in range(6)]
    starts = [output.count("fit ") for output in outputs]
    assert sorted(starts[:4]) == [1, 1, 2, 2]  # those of the worker that was killed
    assert starts[4:] == [1, 1]
    for trial in after:
        assert trial.value == pytest.approx(0.9 + trial.params["optimizer.lr"] / 1000)


def until_listening(url: str) -> None:
    address = make_url(url)
    begin = time.monotonic()
    while True:
        try:
            socket.create_connection((address.host, address.port), timeout=10).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < begin + 30, Path("postgres.log").read_text()
            time.sleep(0.05)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.stem)
def test_every_space_in_configs_trains(space: Path, data_dir: str) -> None:
    first = {name: first_value(values) for name, values in read_space(space).items()}
    main(["fit", "--data.data_dir", data_dir, "--trainer.max_steps", "3", *fit_options(first)])
    lines = space.read_text().splitlines()
    command = f"# fnn sweep --space configs/sweep/{space.name} "
    assert lines[0].startswith(command)
    assert any(line.startswith("# Expect: ") for line in lines)


@pytest.fixture
def swept(data_dir: str, forked_runs: None) -> list[optuna.trial.FrozenTrial]:
    """Make a sweep with real runs, and return its trials."""
    Path("space.yaml").write_text(
        "depth: {low: 0, high: 2}\nwidth: {low: 4, high: 16, log: true}\n"
        "model.activation: {choices: [relu, tanh]}\n"
        "optimizer.lr: {choices: [1e-3, 0.1, 1e38]}\n"  # the last one diverges
    )
    main(["sweep", "--space", "space.yaml", "--folder", "lightning_logs", "--trials", "3",
          "--workers", "2", "--data.data_dir", data_dir, "--trainer.max_epochs", "1"])  # fmt: skip
    return trials("lightning_logs")


@pytest.mark.soak
def test_tensorboard_shows_the_trials_and_their_parameters(
    swept: list[optuna.trial.FrozenTrial], tensorboard: str, capfd: pytest.CaptureFixture[str]
) -> None:
    columns = {"colParams": [{"metric": {"tag": "val/acc"}}], "sliceSize": 10}
    statuses = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]}
    groups = ask(f"{tensorboard}/plugin/hparams/session_groups", {**statuses, **columns})
    runs = {group["sessions"][0]["name"]: group for group in groups["sessionGroups"]}
    values = {}
    for trial in swept:
        run = runs[f"trial_{trial.number:04}"]
        depth = trial.params["depth"]
        assert run["hparams"]["depth"] == depth
        assert run["hparams"]["hidden_dims"] == str([trial.params["width"]] * depth)
        assert run["hparams"]["activation"] == trial.params["model.activation"]
        assert run["hparams"]["lr"] == float(trial.params["optimizer.lr"])
        diverges = trial.params["optimizer.lr"] == "1e38"
        assert trial.state.name == ("FAIL" if diverges else "COMPLETE")
        if diverges:
            assert "Try a lower learning rate" in trial.user_attrs["reason"]
        else:
            shown = {value["name"]["tag"]: value["value"] for value in run["metricValues"]}
            values[trial.number] = pytest.approx(shown["val/acc"])
    assert values == {trial.number: trial.value for trial in swept if trial.value is not None}
    assert len(values) == 2
