import os
import stat
from pathlib import Path

import pytest

from fnn_lightning.runs.files import write_atomic


@pytest.mark.skipif(os.name == "nt", reason="folders are synced on POSIX alone")
def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, path = [], tmp_path / "last.ckpt"

    def sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        synced.append((is_folder, 0 if is_folder else status.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    write_atomic(path, b"new")
    assert synced == [(False, 3, False), (True, 0, True)]
