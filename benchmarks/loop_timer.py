"""A callback that times the training loop."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class LoopTimer(Callback):
    """Reports the seconds from the start of training to its end, and the modules imported by then.

    Args:
        report: File to write, JSON.
    """

    def __init__(self, report: str | None = None) -> None:
        self.report = report
        self.seconds = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._start
        if self.report:
            values = {"loop": self.seconds, "modules": sorted(sys.modules)}
            Path(self.report).write_text(json.dumps(values))
