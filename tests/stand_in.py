"""Stands in for `python -m fnn_lightning fit` and `test`: results at once, without training.

A run's accuracy is 0.9 + its seed / 100 + its learning rate / 1000, and its fold / 1000 if it has
one; a negative learning rate diverges. While the file `hold` exists, or `hold_fold_1` for such
a fold, a run waits, until SIGTERM comes. A run that starts while the file `ignore` exists ignores
SIGTERM.
"""

import json
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import FrameType


def main(subcommand: str, *argv: str) -> None:
    given = dict(argument.partition("=")[::2] for argument in argv if "=" in argument)
    given |= {
        option: value
        for option, value in pairwise(argv)
        if option.startswith("--") and "=" not in option
    }
    if "--bad" in argv:
        print("error: Expected nothing bad", file=sys.stderr)
        sys.exit(2)
    if "--print_config" in argv:
        print("data:\n  val_size:", given.get("--data.val_size", "null"))
        print("  folds:", given.get("--data.folds", "null"))
        print("  fold:", given.get("--data.fold", "null"))
        print("trainer:\n  logger:", given.get("--trainer.logger", "null"))
        print("  enable_checkpointing: null\n  fast_dev_run: false")
        print("lr:", given.get("--optimizer.lr", 0))
        return
    if subcommand == "test":
        run = Path(given["--ckpt_path"]).parents[1]
        metrics = json.loads((run / "metrics.json").read_text())
        accuracy = metrics["fit"]["best"]["score"] - 0.5
        metrics["test"] = {"accuracy": accuracy, "checkpoint": "checkpoints/best.ckpt"}
        (run / "metrics.json").write_text(json.dumps(metrics))
        return
    if "--config" in given:
        settings = Path(given["--config"]).read_text().split()
        given["--optimizer.lr"] = settings[settings.index("lr:") + 1]
    lr, seed = float(given.get("--optimizer.lr", 0)), int(given.get("--seed_everything", 0))
    print("fit", *argv, flush=True)
    if given.get("--data.val_size") == "0" and "--checkpoint.monitor" in given:
        print("error: Nothing is selected by it", file=sys.stderr)
        sys.exit(2)
    if lr > 10:
        print("error: Expected something else", file=sys.stderr)
        sys.exit(2)
    if "--trainer.fast_dev_run=1" in argv:
        return
    run = Path(given["--run_folder"])
    run.mkdir(exist_ok=True)
    (run / "began").touch()
    while Path("hold").exists() or Path(f"hold_{run.name}").exists():
        time.sleep(0.02)
    if lr < 0 or (run / "diverge").exists():
        print("error: The loss is no longer finite", file=sys.stderr)
        sys.exit(1)
    score = 0.9 + seed / 100 + lr / 1000 + int(given.get("--data.fold", 0)) / 1000
    fit = {"step": 7, "val/acc": 0.1, "seconds": 1.5, "checkpoint": "checkpoints/best.ckpt"}
    fit["best"] = {"monitor": "val/acc", "score": score}
    (run / "metrics.json").write_text(json.dumps({"fit": fit}))


def stop(signum: int, frame: FrameType | None) -> None:
    print(f"stopped by {signal.Signals(signum).name}, saved", file=sys.stderr)
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN if Path("ignore").exists() else stop)
    main(*sys.argv[1:])
