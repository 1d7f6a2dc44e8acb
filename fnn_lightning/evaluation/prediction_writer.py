"""What `predict` prints and writes: CSV of the test set, or a table of one's own pictures."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader, all_gather_batch
from fnn_lightning.errors import InputError
from fnn_lightning.lit_module import CLASSES
from fnn_lightning.runs.files import check_writable, output_file, write_atomic

COLUMNS = ("digit", *(f"p{digit}" for digit in range(CLASSES)))


class PredictionWriter(callbacks.Callback):
    """Prints and writes the predictions: index or file, digit, probability of each digit.

    Of the test set stdout gets CSV, if no file does; of pictures always a table, in which those far
    from the training data are marked. On several processes each has predicted its share of a
    batch; the first prints and writes the whole.

    Args:
        output: File to write, `.csv` or `.json`; probabilities are from 0 to 1.
        save_inputs: Folder for the 28×28 that the net saw of each picture, as PNG.

    Raises:
        InputError: If one of them cannot be written, or would replace a picture.
    """

    def __init__(self, output: str | None = None, save_inputs: str | None = None) -> None:
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
        self._rows: list[tuple[int, list[float]]] = []
        self._streams = self._pictures is None and self.output is None
        pictures = (*(self._pictures or ()), *getattr(datamodule, "unread", ()))
        named = {path.resolve() for path in pictures}
        folders = {path.parent for path in named}
        if self.output and self.output.resolve() in named:
            raise InputError(f"Expected --output to be another file than the picture {self.output}")
        if self.save_inputs and self.save_inputs.resolve() in folders:
            raise InputError(
                "Expected --save_inputs to be another folder than that of the pictures, "
                f"but got {self.save_inputs}"
            )
        if self._streams and trainer.is_global_zero:
            print("index", *COLUMNS, sep=",")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        parts: tuple[Tensor, ...] = (outputs["digit"], outputs["probabilities"], batch[0])
        source = trainer.predict_dataloaders
        if isinstance(source, InMemoryDataLoader):
            parts = tuple(all_gather_batch(share, source, batch_idx) for share in parts)
        if not trainer.is_global_zero:
            return
        digits, probabilities, inputs = parts
        for digit, row in zip(digits.tolist(), probabilities.tolist(), strict=True):
            if self._streams:
                print(len(self._rows), digit, *(f"{p:.6f}" for p in row), sep=",")
            self._rows.append((digit, row))
        if self._pictures is not None:
            self._inputs += inputs.cpu()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._streams:
            return
        # slow to import, and of use here only
        from fnn_lightning.data.preprocessing import out_of_distribution

        warnings_ = [
            out_of_distribution(pixels, max(row))
            for pixels, (_, row) in zip(self._inputs, self._rows, strict=bool(self._inputs))
        ]
        if self._pictures is not None:
            self._pictures = self._pictures[: len(self._rows)]  # limit_predict_batches leaves some
            print_table(self._pictures, self._rows, warnings_)
        if self.output:
            write_atomic(self.output, self._encode(self.output.suffix.lower(), warnings_))
            print(f"{len(self._rows):,} predictions written to {self.output}")
        if self.save_inputs:
            save_pngs(self.save_inputs, self._pictures or [], self._inputs)

    def _encode(self, suffix: str, warnings_: list[str]) -> bytes:
        names: list[Any] = list(range(len(self._rows)))
        if self._pictures is not None:
            names = list(map(str, self._pictures))
        first = "index" if self._pictures is None else "file"
        if suffix == ".json":
            records = [
                {first: name, "digit": digit, "probabilities": [round(p, 6) for p in row]}
                for name, (digit, row) in zip(names, self._rows, strict=True)
            ]
            for record, warning in zip(records, warnings_, strict=False):
                record["warning"] = warning
            return (json.dumps(records, indent=1) + "\n").encode()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        last = ["warning"] if self._pictures is not None else []
        writer.writerow([first, *COLUMNS, *last])
        for number, (digit, row) in enumerate(self._rows):
            figures = [f"{p:.6f}" for p in row]
            writer.writerow([names[number], digit, *figures, *warnings_[number : number + 1]])
        return text.getvalue().encode(errors="surrogateescape")  # a file's name can be any bytes


def print_table(
    pictures: list[Path], rows: list[tuple[int, list[float]]], warnings_: list[str]
) -> None:
    """Print a line for each picture, with a `!` where the prediction may be chance."""
    names = ["".join(filter(str.isprintable, str(path))) for path in pictures]
    width = max(map(len, ["file", *names]))
    print(f"{'file':{width}}  digit  probability")
    for name, (digit, row), warning in zip(names, rows, warnings_, strict=True):
        mark = f"  ! {warning}" if warning else ""
        print(f"{name:{width}}  {digit:5}  {max(row):11.4f}{mark}")


def save_pngs(folder: Path, pictures: list[Path], inputs: list[Tensor]) -> None:
    """Write the 28×28 of each picture under its name, numbered where a name comes again."""
    from PIL import Image  # slow to import

    taken: set[str] = set()
    for path, pixels in zip(pictures, inputs, strict=True):
        stem = path.stem[:100]  # a longer name, with what is added, may be longer than any can be
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        content = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(content, "PNG")
        write_atomic(folder / f"{name}.png", content.getbuffer())
