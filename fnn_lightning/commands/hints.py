"""What to tell a user whose options jsonargparse refuses, in one line."""

import difflib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.errors import InputError

# what to use for the words of other programs: Keras, earlier Lightnings, torchvision's scripts, …
ANSWERS = {
    "--trainer.max_epochs": "epochs num_epochs n_epochs",
    "--trainer.max_steps": "steps num_steps iterations max_iters",
    "--trainer.accelerator gpu --trainer.devices 1": "gpu gpus device cuda use_cuda",
    "--trainer.accelerator cpu": "cpu no_cuda",
    "--model.matmul_precision medium": "tf32 allow_tf32 float32_matmul_precision",
    "--trainer.precision 16-mixed": "amp fp16 half amp_backend",
    "--trainer.strategy": "distributed distributed_backend",
    "--trainer.gradient_clip_val": "clip grad_clip max_grad_norm clip_grad_norm",
    "--trainer.accumulate_grad_batches": "accumulate gradient_accumulation_steps",
    "--trainer.enable_progress_bar": "progress_bar_refresh_rate verbose quiet",
    "--trainer.enable_model_summary": "weights_summary",
    "--trainer.enable_checkpointing": "checkpoint_callback",
    "--optimizer": "opt optim optimizer solver",
    "--optimizer.lr": "lr learning_rate base_lr lr0",
    "--optimizer.weight_decay": "wd l2 weight_decay",
    "--optimizer.momentum": "momentum",
    "--lr_scheduler": "scheduler lr_schedule",
    "--model.hidden_dims '[100, 50]'": "hidden hidden_size hidden_sizes hidden_dim layers units",
    "--model.dropout": "dropout_rate drop_rate",
    "--data.batch_size": "bs batch train_batch_size",
    "--data.data_dir": "data_path root dataroot",
    "--data.val_size": "val_split validation_split",
    "--data.folds": "k_folds n_splits num_folds kfold",
    "--data.train_size": "train_subset subset n_train num_train",
    "--seed_everything": "seed random_state manual_seed",
    "--early_stopping.patience": "patience early_stop early_stop_callback",
    "--ckpt_path": "ckpt checkpoint resume resume_from_checkpoint weights model_path",
    "--run_folder": "name project run_name output_dir save_dir log_dir logdir",
}
NOT_NEEDED = {
    "all images are in memory, and none is loaded later": "num_workers workers pin_memory "
    "persistent_workers prefetch_factor",
    "training images come in a new order in every epoch": "shuffle",
}
# what the subcommands without a Trainer cannot do without: its name, and a command that gives it
REQUIRED = {
    "output": ("--output", "export --output model.onnx"),
    "seeds": ("a number of seeds", "seeds 3 --config mnist"),
    "space": ("--space", "sweep --space space.yaml --config mnist"),
}
ONLY_FIT = "run_folder init_from find_lr"
# where the classes are that an option may name
CLASSES = {
    "optimizer": "torch.optim",
    "lr_scheduler": "torch.optim.lr_scheduler",
    "trainer.callbacks": "lightning.pytorch.callbacks",
    "trainer.logger": "lightning.pytorch.loggers",
}
# those of them that no user names: bases, what takes functions or objects, what is refused here
NEVER_NAMED = {
    *("Optimizer", "Muon", "SparseAdam"),
    *("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"),
    *("Callback", "Checkpoint", "BaseFinetuning", "BasePredictionWriter", "LambdaCallback"),
    *("ProgressBar", "Logger"),
    *("BatchSizeFinder", "LearningRateFinder", "StochasticWeightAveraging", "WeightAveraging"),
}


def refuse_single_dash(argv: list[str]) -> None:
    """Refuse an option that is written with one dash.

    Raises:
        InputError: If there is one.
    """
    for word in argv:
        if re.fullmatch(r"-[a-zA-Z]\w+(\.\w+)*(=.*)?", word):
            raise InputError(f"Expected two dashes before an option, but got {word}: use -{word}")


def explain(message: str, known: Iterable[str]) -> str:
    """Reword jsonargparse's message as one line, which suggests the nearest option to a wrong one.

    Args:
        message: The message.
        known: The names of all options.

    Example:
        >>> explain("unrecognized arguments: --data.batch_sise=3", ["data.batch_size"])
        'Unknown option data.batch_sise; did you mean data.batch_size?'
    """
    text = " ".join(message.split())
    missing = re.fullmatch(r"the following arguments are required: (\w+)", text)
    if missing and missing[1] in REQUIRED:
        what, example = REQUIRED[missing[1]]
        return f"Expected {what}, but got none: {COMMAND} {example}"
    return explain_unknown_option(text, known) or explain_wrong_value(text)


def explain_unknown_option(text: str, known: Iterable[str]) -> str | None:
    """Reword a message about an unknown option; None if it is about something else."""
    keys = [key.replace("init_args.", "") for key in known]
    if stray := re.search(r"unrecognized arguments: (?P<value>[^-\s]\S*)", text):
        return f"Unexpected argument {stray['value']}: {use_of(stray['value'], keys)}"
    if argument := re.search(
        r'"(\w+)":.*?class_path \'([\w.]+)\': Option \'(\w+)\' is not accepted', text
    ):
        return explain_class_argument(*argument.groups())
    unknown = re.search(r"unrecognized arguments: (?P<name>[^\s=]+)", text) or re.search(
        r"does not accept option '(?P<name>[^']+)'", text
    )
    if not unknown:
        return None
    name = unknown["name"].lstrip("-")
    last = name.rpartition(".")[2].replace("-", "_")
    groups = {key.partition(".")[0] for key in keys}
    if name in ONLY_FIT.split():
        return f"Unknown option {name}: only `fit` takes it; drop it, from the config too"
    if answer := answer_for(last, groups):
        return f"Unknown option {name}: {answer}"
    near = [key for key in keys if key.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(
        name, keys if "." in name else [*keys, *groups], n=1, cutoff=0.5
    )
    return f"Unknown option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def answer_for(word: str, groups: set[str]) -> str | None:
    """Say what to do instead of an option that other programs have; None if it is not known.

    Args:
        word: Its name.
        groups: The options that there are, up to the first dot.
    """
    for reason, words in NOT_NEEDED.items():
        if word in words.split():
            return f"drop it; {reason}"
    for answer, words in ANSWERS.items():
        if word in words.split() and answer.lstrip("-").partition(".")[0] in groups:
            return f"use {answer}"
    return None


def use_of(value: str, keys: list[str]) -> str:
    """Say how to write a word that belongs to no option."""
    groups = {key.partition(".")[0] for key in keys}
    if answer := answer_for(value, groups):
        return answer
    if value in (*keys, *groups):
        return f"an option begins with two dashes, --{value}"
    options = {".yaml": "config", ".yml": "config", ".ckpt": "ckpt_path"}
    option = options.get(Path(value).suffix)
    if option in keys:
        return f"use --{option} {value}"
    if "data.images" in keys:  # of `predict`, whose only words without an option are pictures
        return f"use --data.images {value}"
    if "config" not in keys:
        return "positional arguments come before options"
    return "write --NAME before a value, and a list in brackets, '[100, 50]'"


def explain_class_argument(group: str, class_path: str, name: str) -> str:
    """Explain an argument that an optimiser's or another option's class does not take."""
    module, _, class_name = class_path.rpartition(".")
    if class_name not in ("Optimizer", "LRScheduler"):
        parameters = inspect.signature(getattr(import_module(module), class_name)).parameters
        wanted = next(
            (each for each, words in ANSWERS.items() if name in words.split()), f".{name}"
        ).rpartition(".")[2]
        near = difflib.get_close_matches(wanted, parameters, n=1, cutoff=0.5)
        if near:
            return f"Unknown option {group}.{name}; did you mean {group}.{near[0]}?"
        others = ", ".join([*parameters][1:])  # the first is for the Trainer to give
        return f"Unknown option {group}.{name}: {class_name} takes {others}"
    kinds = classes_of(group)
    takers = [
        each
        for each, kind in kinds.items()
        if each != class_name
        and issubclass(kind, kinds[class_name])
        and name in inspect.signature(kind).parameters
    ]
    if not takers:
        return f"Unknown option {group}.{name}; --{group} says of which class"
    return f"Expected the class of {group}.{name}, but got none: add --{group} {takers[0]}" + (
        f", or {', '.join(takers[1:])}" if len(takers) > 1 else ""
    )


def classes_of(option: str) -> dict[str, type]:
    """Return the classes that an option may name by their short names."""
    found = vars(import_module(CLASSES[option]))
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and kind.__module__.startswith(("torch.", "lightning."))
    }


def classes_to_name(option: str) -> list[str]:
    """Return the short names of the classes that are of use for an option, in order.

    Example:
        >>> classes_to_name("trainer.logger")[:2]
        ['CSVLogger', 'CometLogger']
    """
    names = classes_of(option).keys() - NEVER_NAMED
    return sorted(name for name in names if not name.startswith("_"))


def similar_class(option: str, value: str) -> str:
    """Suggest the class that was meant, if one has a name like it.

    Example:
        >>> similar_class("optimizer", "adamw"), similar_class("optimizer", "qwerty")
        ('; did you mean AdamW?', '')
    """
    names = {name.lower(): name for name in classes_of(option)}
    short = value.rpartition(".")[2].lower()
    near = difflib.get_close_matches(short, names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]}?" if near else ""


def explain_instance(message: str) -> str:
    r"""Reword in one line why an object could not be made of what the user gave.

    Example:
        >>> text = "Problem with given class_path 'a.WandbLogger':\n Requirement 'wandb>=1' not met"
        >>> explain_instance(text)
        'WandbLogger needs wandb, but wandb is not installed: pip install wandb'
    """
    problem = re.search(r"given class_path '[\w.]*?(\w+)':\s*(.+)", message)
    if not problem:
        return message.partition("\n")[0]
    name, reason = problem.groups()
    if missing := re.search(r"(?:Requirement|No module named) '([\w-]+)", reason):
        package = missing[1]
        return f"{name} needs {package}, but {package} is not installed: pip install {package}"
    return f"{name}: {reason}"


def explain_wrong_value(text: str) -> str:
    r"""Reword a message about an option's value; one of an unknown form stays as it is.

    Example:
        >>> explain_wrong_value('Parser key "seeds": Expected a <class \'int\'>. Got value: many')
        'Expected `seeds` to be int, but got many'
    """
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    if missing := re.fullmatch(r"argument (\S+): expected one argument", text):
        return f"Expected a value after {missing[1]}, but got none; a switch takes true or false"
    wrong = re.search(r'Parser key "(?P<key>[\w.]+)":', text)
    if not wrong:
        return text
    if unloadable := re.search(r"Unable to load config '(.*?)' - ", text):
        return (
            f"Expected `{wrong['key']}` to be a config file, or its settings one by one as "
            f"--{wrong['key']}.NAME, but got {unloadable[1]}"
        )
    if argument := re.search(r"NestedArg\(key='(\w+)', val='?(.*?)'?\)$", text):
        return f"`{wrong['key']}.{argument[1]}` cannot be {argument[2]}"
    if required := re.search(r"class_path '([\w.]+)': (the following [^-]+)", text):
        hint = " (0 is the length of the run)" if "T_max" in required[2] else ""
        return f"{required[1]} as {wrong['key']}: {required[2].strip()}{hint}"
    # a union of types: "Expected a X. Got value: V" for each of them
    expected = [
        choice.removeprefix("a ")
        for choice in re.findall(
            r"Expected (?:an? )?(.+?)(?=\.? Got value| - | Given value|$)", text
        )
    ]
    value = re.search(r"(?:Got|Given) value: (.*)", text)
    if not expected or not value:
        return text
    hint = ""
    if wrong["key"] in CLASSES and "not accessible" in text:
        expected = [f"a class of {CLASSES[wrong['key']]}"]
        hint = similar_class(wrong["key"], value[1])
    elif choices := re.findall(r"'([\w-]+)'", " ".join(expected)):
        near = difflib.get_close_matches(value[1].lower(), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    elif "Sequence" in expected[0] and "[" not in value[1]:
        is_number = re.fullmatch(r"[\d.]+", value[1])
        hint = ": write '[100, 50]'" if is_number else f": write '[{value[1]}]'"
    kinds = " or ".join(dict.fromkeys(expected)).replace("NoneType", "null")
    kinds = kinds.replace("Sequence", "a list")
    return f"Expected `{wrong['key']}` to be {kinds}, but got {value[1]}{hint}"
