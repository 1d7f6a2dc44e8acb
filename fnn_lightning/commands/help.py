"""What `fit --help` and the like print: the options that people use, a line each.

Printed without importing torch. `--help_all` is LightningCLI's own help, with all that the Trainer
takes.
"""

from fnn_lightning.commands.main import COMMAND, WITH_TRAINER
from fnn_lightning.runs.settings import MAX_EPOCHS

EXAMPLES = {
    "fit": [
        "--config mnist",
        "--model.hidden_dims '[300, 100]' --optimizer Adam",
        "--ckpt_path lightning_logs/version_0   # resumes",
    ],
    "validate": ["", "--ckpt_path lightning_logs/version_0"],
    "test": ["", "--ckpt_path lightning_logs/version_0"],
    "predict": ["--output digits.csv", "--data.images my_pictures"],
}

CKPT_PATH = {"ckpt_path": ("", "checkpoint or run folder (default: newest run)")}
DATA = {
    "data.dataset": ("", "a name or a path (default: as the run)"),
    "data.data_dir": ("", "folder of the data (default: as the run)"),
}
TRAINER = {
    "trainer.accelerator": ("auto", "cpu, gpu, mps or auto"),
    "trainer.devices": ("auto", "how many of them"),
}

# for each subcommand, by group: the option, its default if it is worth showing, what it is
OPTIONS: dict[str, dict[str, dict[str, tuple[str, str]]]] = {
    "fit": {
        "run": {
            "config": ("", "YAML file, or a name that `configs` lists"),
            "print_config": ("", "print all settings as YAML, and do not train"),
            "seed_everything": ("0", "seed of everything random"),
            "run_folder": ("", "folder of the run; resumes if it holds one"),
            "ckpt_path": ("", "checkpoint or folder of a run to resume"),
            "init_from": ("", "run to start from: its weights and settings"),
            "find_lr": ("false", "find the learning rate in 100 steps, and use it"),
        },
        "network": {
            "model.hidden_dims": ("[100]", "width of every hidden layer"),
            "model.activation": ("relu", "relu, gelu, tanh, sigmoid, … after each"),
            "model.batch_norm": ("false", "normalise each hidden layer over the batch"),
            "model.dropout": ("0", "share of a hidden layer's outputs set to 0"),
            "model.input_dropout": ("0", "share of the pixels set to 0"),
            "model.initialization": ("pytorch", "pytorch, he or xavier"),
            "model.pixel_mean": ("0", "subtracted from the pixels, 0 to 1"),
            "model.freeze": ("0", "first layers whose weights stay as they are"),
        },
        "training": {
            "optimizer": ("SGD", "of torch.optim; arguments as --optimizer.NAME"),
            "optimizer.lr": ("0.1", "learning rate"),
            "lr_scheduler": ("", "of torch.optim.lr_scheduler, likewise"),
            "model.lr_interval": ("epoch", "how often it steps: epoch or step"),
            "model.warmup": ("0", "steps, or share of the run, of rising rate"),
            "model.label_smoothing": ("0", "share of a label that all classes get"),
            "model.keep_hardest": ("1", "share of a batch to step on, the hardest"),
            "ema.decay": ("0", "of a moving average of the weights; 0: none"),
            "model.num_threads": ("", "CPU threads (default: by the work of a step)"),
        },
        "data": {
            "data.dataset": ("mnist", "or fashion_mnist, digits, …, or your own path"),
            "data.data_dir": ("data", "folder of the data, downloaded into it"),
            "data.mirror": ("", "folder or address to download from"),
            "data.batch_size": ("100", "images in a step, over all ranks"),
            "data.val_size": ("", "images held out (default: 5,000 of MNIST)"),
            "data.folds": ("", "or cross-validation: folds, of which data.fold"),
            "data.train_size": ("", "images to train on, of each class alike"),
            "data.class_weights": ("", "balanced, or a number for each class"),
            "data.framing": ("", "of your own pictures: resize or mnist"),
            "data.bad_files": ("stop", "or skip: your pictures that cannot be read"),
            "data.augmentation.rotation": ("0", "degrees at most, either way"),
            "data.augmentation.scale": ("0", "width and height by 1 ± so much"),
            "data.augmentation.shear": ("0", "degrees of slant at most"),
            "data.augmentation.shift": ("0", "pixels at most"),
            "data.augmentation.elastic": ("0", "pixels, standard deviation"),
            "data.augmentation.min_strength": ("1", "least share of all of these"),
            "data.augmentation.end": ("1", "share of the run that is augmented"),
        },
        "checkpoints and logs": {
            "checkpoint.monitor": ("", "metric of the best checkpoint, as val/acc"),
            "checkpoint.every_n_steps": ("", "save as often; every_n_minutes likewise"),
            "early_stopping.patience": ("", "validations without a better val/acc"),
            "tensorboard.enabled": ("true", "pictures and graph beside the curves"),
        },
        "the Trainer's, of which --help_all shows the rest": {
            "trainer.max_epochs": (str(MAX_EPOCHS), "epochs to train"),
            **TRAINER,
            "trainer.val_check_interval": ("", "steps, share of an epoch, or DD:HH:MM:SS"),
        },
    },
    "validate": {"": {**CKPT_PATH, **DATA, **TRAINER}},
    "test": {
        "": {
            **CKPT_PATH,
            "report_folder": ("", "for report.html (default: the run's folder)"),
            "data.test_train_set": ("false", "measure the training images as well"),
            "tensorboard.projector": ("false", "the last hidden layer in the projector"),
            **DATA,
            **TRAINER,
        }
    },
    "predict": {
        "": {
            **CKPT_PATH,
            "data.images": ("", "pictures and folders (default: the test set)"),
            "output": ("", "file for the predictions, .csv or .json"),
            "save_inputs": ("", "folder for what the net sees of each picture"),
            **DATA,
            **TRAINER,
        }
    },
}


def help_text(subcommand: str) -> str:
    """Return the help of a subcommand, for 80 columns.

    Args:
        subcommand: One of `WITH_TRAINER`.
    """
    lines = [f"usage: {COMMAND} {subcommand} [options]", "", WITH_TRAINER[subcommand], ""]
    lines += [f"  {COMMAND} {subcommand} {words}".rstrip() for words in EXAMPLES[subcommand]]
    for group, options in OPTIONS[subcommand].items():
        lines.append(f"\n{group or 'options'}:")
        for name, (default, text) in options.items():
            shown = f"--{name}" + (f" {default}" if default else "")
            lines.append(f"  {shown:<29}  {text}")
    lines.append("\nWhat stands after an option is its default. --help_all lists all options.")
    return "\n".join(lines)
