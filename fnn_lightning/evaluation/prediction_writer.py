"""What `predict` prints and writes: the class and the probabilities of each image or picture."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader, all_gather_batch
from fnn_lightning.data.datasets import DIGITS
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.class_names import short_name
from fnn_lightning.evaluation.novelty import NoveltyDetector
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.files import check_writable, output_file, write_atomic
from fnn_lightning.runs.progress import progress_bar

MAX_TABLE = 20  # pictures of which a table is printed beside the output; more hide the rest
MAX_STEM = 100  # characters; file systems limit the length of a name

Record = dict[str, Any]
"""One prediction: `index` or `file`, `class`, `probabilities` and, of a picture, `warning`."""


class PredictionWriter(callbacks.Callback):
    """Prints and writes predictions: index or file, class, probability of each class.

    Predictions of the test set go to `output` or, without it, to stdout as CSV. Predictions of
    pictures are printed as a table, with a warning for those unlike the training data; they go to
    `output` as well, and more than 20 of them there alone. Only rank 0 prints and writes.

    Args:
        output: File to write, `.csv` or `.json`. Probabilities are from 0 to 1.
        save_inputs: Folder for the 28 × 28 image that the network gets from each picture, as PNG.
        novelty: Tells pictures that look like none of the classes; None for a network that was
            trained before there were detectors, or on too few images for one.

    Raises:
        InputError: If `output` or `save_inputs` cannot be written; when prediction starts, if it
            would overwrite a picture.
    """

    def __init__(
        self,
        output: str | None = None,
        save_inputs: str | None = None,
        novelty: NoveltyDetector | None = None,
    ) -> None:
        self.novelty = novelty
        self.output = output_file(output, (".csv", ".json")) if output is not None else None
        self.save_inputs = Path(save_inputs).expanduser() if save_inputs is not None else None
        if self.save_inputs:
            if self.save_inputs.exists() and not self.save_inputs.is_dir():
                raise InputError(
                    f"Expected --save_inputs to be a folder, but got {save_inputs}: it is a file"
                )
            check_writable(self.save_inputs, "--save_inputs")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._pictures: list[Path] | None = getattr(datamodule, "pictures", None)
        self._inputs: list[Tensor] = []
        self._records: list[Record] = []
        assert isinstance(pl_module, FNNLitModule)
        self._class_names = pl_module.class_names
        self._like_mnist = pl_module.class_names == DIGITS and pl_module.framing == "mnist"
        self._prints_csv = self._pictures is None and self.output is None
        self._check_overwrites_no_picture(getattr(datamodule, "unread", ()))
        if self._prints_csv and trainer.is_global_zero:
            print(csv_line("index", *columns(self._class_names)), end="")

    def _check_overwrites_no_picture(self, unread: Any) -> None:
        pictures = {path.resolve() for path in (*(self._pictures or ()), *unread)}
        if self.output and self.output.resolve() in pictures:
            raise InputError(
                f"Expected --output not to be one of the pictures, but got {self.output}: "
                "choose another name"
            )
        if self.save_inputs and self.save_inputs.resolve() in {path.parent for path in pictures}:
            raise InputError(
                "Expected --save_inputs to be another folder than that of the pictures, "
                f"but got {self.save_inputs}: choose another one"
            )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        parts: tuple[Tensor, ...] = (outputs["class"], outputs["probabilities"], batch[0])
        dataloader = trainer.predict_dataloaders
        if isinstance(dataloader, InMemoryDataLoader):
            parts = tuple(all_gather_batch(part, dataloader, batch_idx) for part in parts)
        if not trainer.is_global_zero:
            return
        classes, probabilities, inputs = parts
        for k, row in zip(classes.tolist(), probabilities.tolist(), strict=True):
            index, predicted = len(self._records), self._class_names[k]
            if self._prints_csv:
                print(csv_line(index, predicted, *(f"{p:.6f}" for p in row)), end="")
            name: Record = (
                {"index": index} if self._pictures is None else {"file": str(self._pictures[index])}
            )
            self._records.append({**name, "class": predicted, "probabilities": row})
        if self._pictures is not None:
            self._inputs += inputs.cpu()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._prints_csv:
            return
        if self._pictures is not None:
            novel = [False] * len(self._inputs)
            if self.novelty is not None and self._inputs:
                assert isinstance(pl_module, FNNLitModule)
                novel = self.novelty.marks(pl_module, torch.stack(self._inputs)).tolist()
            add_warnings(self._records, self._inputs, self._like_mnist, novel)
            if not self.output or len(self._records) <= MAX_TABLE:
                print_table(self._records)
        if self.output:
            is_json = self.output.suffix.lower() == ".json"
            encode = to_json if is_json else to_csv
            content = encode(self._records, self._class_names)
            write_atomic(self.output, content)
            warned = sum(bool(record.get("warning")) for record in self._records)
            marked = f", {warned:,} of them with a warning" if warned else ""
            print(f"{len(self._records):,} predictions written to {self.output}{marked}")
        if self.save_inputs and self._pictures is not None:
            # limit_predict_batches may leave some pictures out
            save_pngs(self.save_inputs, self._pictures[: len(self._inputs)], self._inputs)


def add_warnings(
    records: list[Record], inputs: list[Tensor], like_mnist: bool, novel: list[bool]
) -> None:
    """Add to each picture's record its warning, "" if it looks like the training data.

    Args:
        records: The records, with probabilities.
        inputs: The network's input for each, `uint8` of shape `(28, 28)`.
        like_mnist: Whether the training data are digits in MNIST's form.
        novel: Whether each looks like none of the classes.
    """
    from fnn_lightning.data.preprocessing import out_of_distribution  # slow to import

    checked = zip(records, inputs, novel, strict=True)
    with progress_bar(checked, "checking", total=len(records), delay=1) as bar:
        for record, pixels, is_novel in bar:
            confidence = max(record["probabilities"])
            record["warning"] = out_of_distribution(pixels, confidence, like_mnist, is_novel)


def print_table(records: list[Record]) -> None:
    """Print a line for each picture, with a `!` before a warning."""
    names = ["".join(filter(str.isprintable, record["file"])) for record in records]
    classes = [short_name(record["class"]) for record in records]
    width, class_width = (max(map(len, cells)) for cells in (["file", *names], ["class", *classes]))
    print(f"{'file':{width}}  {'class':{class_width}}  probability")
    for name, predicted, record in zip(names, classes, records, strict=True):
        warning = f"  ! {record['warning']}" if record["warning"] else ""
        probability = max(record["probabilities"])
        print(f"{name:{width}}  {predicted:>{class_width}}  {probability:11.4f}{warning}")


def columns(class_names: Sequence[str]) -> list[str]:
    """Name the columns of the class and of each probability.

    >>> columns(["cat", "dog"])
    ['class', 'p_cat', 'p_dog']
    """
    return ["class", *(f"p_{name}" for name in class_names)]


def csv_line(*cells: Any) -> str:
    """Write a line of CSV, with quotes where a class name needs them."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def to_json(records: list[Record], class_names: Sequence[str]) -> bytes:
    """Encode predictions as a JSON list, with the probability of each class by its name."""
    rounded = [
        {
            **record,
            "probabilities": {
                name: round(p, 6)
                for name, p in zip(class_names, record["probabilities"], strict=True)
            },
        }
        for record in records
    ]
    return (json.dumps(rounded, indent=1) + "\n").encode()


def to_csv(records: list[Record], class_names: Sequence[str]) -> bytes:
    """Encode predictions, one or more, as CSV with a column for each class's probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    name = "file" if "file" in records[0] else "index"
    warning = ["warning"] if "warning" in records[0] else []
    writer.writerow([name, *columns(class_names), *warning])
    for record in records:
        probabilities = [f"{p:.6f}" for p in record["probabilities"]]
        last = [record[key] for key in warning]
        writer.writerow([record[name], record["class"], *probabilities, *last])
    return text.getvalue().encode(errors="surrogateescape")  # names can be any bytes


def save_pngs(folder: Path, pictures: list[Path], inputs: list[Tensor]) -> None:
    """Write the network's 28 × 28 input for each picture as a PNG of the same name.

    Pictures of the same name in different folders get a number: `b.png`, `b_2.png`.
    """
    from PIL import Image  # slow to import

    taken: set[str] = set()
    saved = zip(pictures, inputs, strict=True)
    with progress_bar(saved, "saving", total=len(pictures), delay=1) as bar:
        for path, pixels in bar:
            stem = path.stem[:MAX_STEM]
            name, number = stem, 1
            while name.lower() in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add(name.lower())
            content = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(content, "PNG")
            write_atomic(folder / f"{name}.png", content.getbuffer())
