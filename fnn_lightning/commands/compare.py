"""The subcommand `compare`: settings, accuracies and significance of trained networks."""

from itertools import combinations
from pathlib import Path
from string import ascii_uppercase

import torch
from torch import Tensor

from fnn_lightning.commands.compare_seeds import Recipe, find_recipes, holds_seeds
from fnn_lightning.commands.compare_settings import collect_settings
from fnn_lightning.commands.compare_tables import (
    accuracy_lines,
    pair_lines,
    recipe_lines,
    recipe_pair_lines,
    settings_lines,
)
from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.options import make_parser, parse
from fnn_lightning.commands.seeds import SEEDS_CONFIG
from fnn_lightning.data.datasets import check_classes
from fnn_lightning.errors import InputError
from fnn_lightning.runs.load import TrainedNetwork, load_trained, newest_first
from fnn_lightning.runs.progress import says
from fnn_lightning.runs.run_folder import RUNS, runs_in

VARIES = "varies"
Settings = dict[str, str]


def main(argv: list[str]) -> None:
    """Print which settings of trained networks differ, their accuracies, and their significance.

    Every network predicts the whole test set again. The p-value of two runs is about these networks
    and these images: it does not tell whether other seeds would reverse the result. That of two
    recipes, folders of `seeds`, is about other seeds and other images too.

    Args:
        argv: The command line after `compare`.

    Raises:
        InputError: If the networks cannot be compared, or the data set is missing.
    """
    parser = make_parser(
        "compare",
        "Compares runs: settings that differ, accuracies on the test set, and for each pair "
        "whether the difference is more than chance (exact McNemar test). Of folders of `seeds` it "
        "compares the recipes: whether other seeds and images would show the difference as well.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        metavar="RUN",
        help="Checkpoint, or folder of a run: its best.ckpt or, without one, its last.ckpt. Or "
        "folders of `seeds`, with nothing else.",
    )
    parser.add_argument(
        "--data_dir",
        type=str | None,
        default=None,
        help="Folder of the data; by default that of the first run.",
    )
    parser.add_argument(
        "--mirror",
        type=str | None,
        default=None,
        help="Folder or base URL of MNIST's archives, to fetch missing data from.",
    )
    options = parse(parser, argv)
    check_paths(options.runs)
    if any(map(holds_seeds, options.runs)):
        lines = compare_recipes(find_recipes(options.runs), options.data_dir, options.mirror)
    else:
        lines = compare_runs(options.runs, options.data_dir, options.mirror)
    for line in lines:
        print("".join(filter(str.isprintable, line)))


def compare_runs(paths: list[str], data_dir: str | None, mirror: str | None) -> list[str]:
    """Compare runs: return the lines to print."""
    runs = load_runs(paths)
    settings = {label: collect_settings(run) for label, run in runs.items()}
    with says(f"measuring {len(runs)} runs"):
        test_images = SharedTestImages(runs["A"], data_dir, mirror)
        correct = {label: test_images.correct(run) for label, run in runs.items()}
    lines = [f"{label}  {run.path}" for label, run in runs.items()]
    lines += ["", *settings_lines(settings)]
    lines += ["", str(test_images), *accuracy_lines(correct)]
    return [*lines, "", *pair_lines(correct)]


def compare_recipes(recipes: list[Recipe], data_dir: str | None, mirror: str | None) -> list[str]:
    """Compare recipes: return the lines to print."""
    first_networks = load_runs([str(paths[0]) for paths in map(first_seed, recipes)])
    labelled = dict(zip(first_networks, recipes, strict=True))
    settings, scores, lines = {}, {}, []
    count = sum(len(paths) for each in recipes for paths in each.checkpoints.values())
    with says(f"measuring {count} networks"):
        test_images = SharedTestImages(first_networks["A"], data_dir, mirror)
        for label, recipe in labelled.items():
            settings[label], scores[label] = measure_recipe(recipe, test_images)
            lines.append(f"{label}  {recipe.folder}")
            if recipe.incomplete:
                seeds = ", ".join(map(str, recipe.incomplete))
                lines.append(f"   without what has not completed: seed {seeds}")
    lines += ["", *settings_lines(settings)]
    lines += ["", str(test_images), *recipe_lines(scores)]
    return [*lines, "", *recipe_pair_lines(scores)]


def first_seed(recipe: Recipe) -> list[Path]:
    """Return the checkpoints of the first seed of a recipe."""
    return next(iter(recipe.checkpoints.values()))


def measure_recipe(recipe: Recipe, test_images: "SharedTestImages") -> tuple[Settings, Tensor]:
    """Collect the settings that a recipe's networks share, and what they classify correctly.

    Returns:
        The settings, without the seed, as `collect_settings` has them; and of each seed and test
        image whether it is classified correctly, as the mean over the seed's folds: `float64` of
        shape `(seeds, N)`.
    """
    settings: list[Settings] = []
    rows = []
    for paths in recipe.checkpoints.values():
        correct = []
        for path in paths:
            run = load_trained(path)
            settings.append(collect_settings(run))
            correct.append(test_images.correct(run).double())
        rows.append(torch.stack(correct).mean(dim=0))
    names = dict.fromkeys(name for each in settings for name in each)
    names.pop("seed_everything", None)
    shared: Settings = {}
    for name in names:
        values = {each[name] for each in settings if name in each}
        shared[name] = values.pop() if len(values) == 1 else VARIES
    return shared, torch.stack(rows)


def check_paths(paths: list[str]) -> None:
    """Check the number of runs, and that none of them is a folder of folders of `seeds`.

    Raises:
        InputError: If there are fewer than 2 or more than 26 of them, or one is such a folder.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        known = runs_in(Path(RUNS))
        raise InputError(
            f"Expected 2 to {len(ascii_uppercase)} runs, but got {len(paths)}: "
            f"{COMMAND} compare RUN_A RUN_B; "
            + (f"the last runs: {newest_first(known)}" if known else f"{RUNS} holds no runs")
        )
    for path in paths:
        inside = sorted(each.parent for each in Path(path).expanduser().glob(f"*/{SEEDS_CONFIG}"))
        if inside:
            raise InputError(
                f"Expected a run or a folder of seeds, but {path} holds several: name one, such as "
                f"{inside[-1]}"
            )


def load_runs(paths: list[str]) -> dict[str, TrainedNetwork]:
    """Load the networks to compare, and label them A, B, ….

    Raises:
        InputError: If two of them are the same file, or their data sets differ.
    """
    runs = dict(zip(ascii_uppercase, map(load_trained, paths), strict=False))
    for one, other in combinations(runs.values(), 2):
        if one.path.samefile(other.path):
            raise InputError(f"Expected different checkpoints, but got {other.path} twice")
        check_dataset(one, other)
    return runs


def check_dataset(one: TrainedNetwork, other: TrainedNetwork) -> None:
    """Refuse networks of different data sets."""
    datasets = one.data().dataset, other.data().dataset
    if datasets[0] != datasets[1]:
        raise InputError(
            "Expected networks of one data set, but got "
            f"{one.path} of {datasets[0]} and {other.path} of {datasets[1]}"
        )


class SharedTestImages:
    """The test images on which networks are compared.

    Args:
        first: A network of the data set.
        data_dir: Folder of the data; by default that of the network.
        mirror: Where to fetch data from that are missing.

    Raises:
        InputError: If the data are missing or damaged.
    """

    def __init__(self, first: TrainedNetwork, data_dir: str | None, mirror: str | None) -> None:
        self.first = first
        self.data_dir = data_dir
        self.data = first.data(data_dir=data_dir, mirror=mirror, val_size=0)
        self.data.prepare_data()
        self.data.setup("test")
        self.images = self.data.predict_dataloader().images
        self.labels = self.data.predict_dataloader().labels
        self._same = {self.data.hparams["data_dir"]}

    def __str__(self) -> str:
        return f"{len(self.labels):,} test images of {self.data.dataset}"

    def correct(self, run: TrainedNetwork) -> Tensor:
        """Return which images a network classifies correctly, `bool` of shape `(N,)`.

        Raises:
            InputError: If it is of other data.
        """
        check_dataset(self.first, run)
        check_classes(run.module.class_names, self.data.class_names)
        self._check_images(run)
        return run.logits(self.images).argmax(dim=1) == self.labels

    def _check_images(self, run: TrainedNetwork) -> None:
        """Refuse a network whose own test images are here and are others."""
        if run.module.framing != self.first.module.framing:
            raise InputError(
                "Expected networks whose pictures are framed alike, but got "
                f"{self.first.path} of framing {self.first.module.framing} and {run.path} of "
                f"framing {run.module.framing}"
            )
        own = run.data(val_size=0)
        folder = own.hparams["data_dir"]
        if self.data_dir is not None or folder in self._same or not own.is_present():
            return
        own.setup("test")
        loader = own.predict_dataloader()
        same = torch.equal(loader.images, self.images) and torch.equal(loader.labels, self.labels)
        if not same:
            raise InputError(
                f"Expected networks of the same test images, but those of {run.path}, in {folder}, "
                f"differ from those in {self.data.hparams['data_dir']}: name one with --data_dir"
            )
        self._same.add(folder)
