"""The folders of `seeds` that `compare` takes as recipes: which networks they hold."""

from pathlib import Path
from typing import NamedTuple

import yaml

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.seeds import SEEDS_CONFIG
from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import quote
from fnn_lightning.runs.multirun_folder import fold_runs
from fnn_lightning.runs.run_folder import fit_completed, read_metrics


class Recipe(NamedTuple):
    """One config, trained with several seeds."""

    folder: Path
    checkpoints: dict[int, list[Path]]
    """Of each seed that has completed: one, or one for each fold that validates."""
    incomplete: list[int]
    """The seeds that have not completed, or of which a fold has not."""


def holds_seeds(path: str) -> bool:
    """Tell whether a path is a folder of `seeds`."""
    return Path(path, SEEDS_CONFIG).expanduser().is_file()


def find_recipes(paths: list[str]) -> list[Recipe]:
    """Find the networks in folders of `seeds`.

    Raises:
        InputError: If a path is something else, or fewer than two seeds in it have completed.
    """
    for path in paths:
        if not Path(path).expanduser().exists():
            raise InputError(f"Expected folders of seeds, but got {path}: there is no such folder")
        if not holds_seeds(path):
            folder = next(filter(holds_seeds, paths))
            raise InputError(
                f"Expected either runs or folders of seeds, but got {folder} of several seeds and "
                f"{path}, which is none: train its config with several seeds too, "
                f"{COMMAND} seeds 5 --config FILE, or compare it with one of "
                f"{Path(folder, 'seed_N')}"
            )
    return [find_recipe(Path(path).expanduser()) for path in paths]


def find_recipe(folder: Path) -> Recipe:
    """Find the networks in a folder of `seeds`.

    Raises:
        InputError: If fewer than two seeds have completed, or `seeds.yaml` is damaged.
    """
    checkpoints: dict[int, list[Path]] = {}
    incomplete = []
    file = folder / SEEDS_CONFIG
    names = [path.name.removeprefix("seed_") for path in folder.glob("seed_*") if path.is_dir()]
    try:
        settings = file.read_text(encoding="utf-8")
        for seed in sorted(int(name) for name in names if name.isdecimal()):
            runs = fold_runs(folder / f"seed_{seed}", settings)
            results = {run: read_metrics(run) for run in runs}
            if all(map(fit_completed, results.values())):
                checkpoints[seed] = [
                    run / str(metrics["fit"]["checkpoint"]) for run, metrics in results.items()
                ]
            else:
                incomplete.append(seed)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, yaml.YAMLError):
        raise InputError(f"Expected {file} as `seeds` writes it, but it is damaged") from None
    if len(checkpoints) < 2:
        raise InputError(
            f"Expected 2 or more completed seeds in {folder}, but got {len(checkpoints)}: train "
            f"more of them, {COMMAND} seeds 5 --folder {quote(folder)}"
        )
    return Recipe(folder, checkpoints, incomplete)
