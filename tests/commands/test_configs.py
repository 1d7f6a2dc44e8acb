from pathlib import Path

import pytest

from fnn_lightning.commands.main import main
from tests.support import CONFIGS

RECIPES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.stem)
def test_every_config_trains(config: Path, data_dir: str, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    limits = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "1"]
    main(["fit", "--config", str(config), "--data.data_dir", data_dir, *limits])
    assert "3 steps in all" in capsys.readouterr().out
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.stem)
def test_every_config_says_how_to_run_it_and_what_to_expect(config: Path) -> None:
    lines = config.read_text().splitlines()
    assert lines[0] == f"# python -m fnn_lightning fit --config configs/{config.name}"
    assert any(line.startswith("# Expect: ") for line in lines)
