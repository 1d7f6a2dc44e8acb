from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from torch import Tensor

from fnn_lightning import MNISTDataModule
from fnn_lightning.commands.datamodules import MNISTWithTrainSet
from fnn_lightning.commands.main import main
from fnn_lightning.data.augmentation import (
    MAX_VALUES,
    Augmentation,
    affine_coefficients,
    resample,
    sampling_grid,
)
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.sklearn_digits import read_digits
from fnn_lightning.errors import InputError
from fnn_lightning.runs.loggers import read_curves
from tests.support import CONFIGS

MakeData = Callable[..., MNISTDataModule]

ALL = {"rotation": 15.0, "scale": 0.15, "shear": 10.0, "shift": 2.0, "elastic": 0.9}
NOISE = torch.randint(256, (11, 28, 28), dtype=torch.uint8, generator=torch.Generator())


def affine(angle: float = 0, slant: float = 0, scale: Any = (1, 1), shift: Any = (0, 0)) -> Tensor:
    """Return the points of one image, its angles in degrees."""
    return sampling_grid(
        affine_coefficients(
            torch.tensor([angle]).deg2rad(),
            torch.tensor([slant]).deg2rad(),
            torch.tensor([scale]).float().T,
            torch.tensor([shift]).float().T,
        )
    )


def dot(row: int, column: int) -> Tensor:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, row, column] = 200
    return image


def source(world_size: int = 1, rank: int = 0, epoch: int = 0, **kwargs: Any) -> InMemoryDataLoader:
    kwargs = {"augmentation": Augmentation(**ALL), "shuffle_seed": 3, **kwargs}
    made = InMemoryDataLoader(
        NOISE,
        torch.arange(11),
        kwargs.pop("indices", torch.arange(11)),
        batch_size=5,
        rank=rank,
        world_size=world_size,
        **kwargs,
    )
    if kwargs["shuffle_seed"] is not None:
        made.sampler.set_epoch(epoch)
    return made


def test_without_augmentation_the_bytes_are_served(make_data: MakeData) -> None:
    plain, zero = source(augmentation=None), source(augmentation=Augmentation())
    for (ours, _), (theirs, _) in zip(zero, plain, strict=True):
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, theirs)
    assert torch.equal(resample(NOISE, affine().expand(11, -1, -1, -1)).round().byte(), NOISE)


# The centre lies between the pixels 13 and 14: in relation to it, (row 5, column 20) is 8.5 pixels
# up and 6.5 to the right.
@pytest.mark.parametrize(
    ("change", "row", "column"),
    [
        ({"angle": 90.0}, 7, 5),  # to the left as far as it was up, up as far as it was right
        ({"angle": 180.0}, 22, 7),
        ({"angle": -90.0}, 20, 22),
        ({"shift": (3, -2)}, 3, 23),
        ({"slant": 45.0}, 5, None),  # 8.5 pixels to the right
        ({"angle": 90.0, "shift": (0, 4)}, 11, 5),  # rotated first, then shifted down
    ],
)
def test_a_known_change_moves_a_known_pixel(change: Any, row: int, column: int | None) -> None:
    moved = resample(dot(5, 20), affine(**change))[0]
    if column is None:  # half a pixel: shared by two, of which the image holds none
        assert moved.sum() == 0
        moved = resample(dot(5, 10), affine(**change))[0]  # from 3.5 left to 5 right
        assert moved[5, 18:20].sum() == pytest.approx(200, rel=1e-4)
    else:
        assert moved[row, column] == pytest.approx(200, rel=1e-4)
        assert moved.sum() == pytest.approx(200, rel=1e-4)


def test_slanted_then_scaled_then_rotated_then_shifted() -> None:
    angle, slant = np.radians(30), np.radians(20)  # `y` points down
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    forward = rotation @ np.diag([1.2, 0.7]) @ np.array([[1, -np.tan(slant)], [0, 1]])
    where = affine(30.0, 20.0, (1.2, 0.7), (3, -2))[0].numpy() * 14  # from the centre, in pixels
    rows, columns = np.mgrid[:28, :28] - 13.5
    moved = where @ forward.T + [3, -2]
    np.testing.assert_allclose(moved, np.stack([columns, rows], axis=2), atol=1e-4)


def test_scale_enlarges_about_the_centre() -> None:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 12:16, 12:16] = 100  # 4 × 4
    scaled = resample(image, affine(scale=(2, 1)))[0]
    # edges between the pixels: 8 wide, the outer ones half full
    assert scaled[13].tolist() == pytest.approx([0] * 9 + [25, 75] + [100] * 6 + [75, 25] + [0] * 9)
    assert scaled[:12].sum() + scaled[16:].sum() == pytest.approx(0, abs=1e-3)


def test_the_field_displaces_by_pixels_as_smooth_noise() -> None:
    count = 6000
    augmentation = Augmentation(elastic=1.5)
    drawn = sampling_grid(augmentation.draw(count, (0,))) - affine()
    displaced = (drawn * 14).permute(3, 1, 2, 0)  # a half of the side is 1
    assert displaced.std(dim=3).min() > 1.4  # at every pixel, across and down
    assert displaced.std(dim=3).max() < 1.6
    assert displaced.mean(dim=3).abs().max() < 0.1
    # noise through a Gaussian filter of 5 pixels, at distances of 10 and of 6 across and 8 down
    across, down = displaced
    for other in (across[4, 20], across[14, 10], across[12, 16]):
        correlation = torch.corrcoef(torch.stack([across[4, 10], other]))[0, 1]
        assert correlation == pytest.approx(np.exp(-100 / (4 * 5**2)), abs=0.05)
    assert abs(torch.corrcoef(torch.stack([across[4, 10], down[4, 10]]))[0, 1]) < 0.05


def test_drawn_values_fill_their_range() -> None:
    count = 4000
    drawn = Augmentation(elastic=0.7, shift=3.0).draw(count, (0,))
    field = drawn[:, :, 3:] * 14  # a half of the side is 1
    assert field.std().item() == pytest.approx(0.7, rel=0.02)
    shift = drawn[:, :, 2] * 14
    assert shift.abs().max().item() == pytest.approx(3.0, rel=0.01)
    assert shift.abs().mean().item() == pytest.approx(1.5, rel=0.05)
    assert abs(torch.corrcoef(shift.T)[0, 1]) < 0.05  # across and down, each for itself
    rotated = Augmentation(rotation=30.0).draw(count, (0,))
    angles = torch.atan2(rotated[:, 1, 0], rotated[:, 0, 0]).rad2deg()
    assert angles.abs().max().item() == pytest.approx(30, rel=0.01)
    assert angles.mean().abs() < 1
    scaled = 1 / Augmentation(scale=0.2).draw(count, (0,))[:, [0, 1], [0, 1]]
    assert scaled.min().item() == pytest.approx(0.8, rel=0.01)
    assert scaled.max().item() == pytest.approx(1.2, rel=0.01)
    slants = Augmentation(shear=10.0).draw(count, (0,))[:, 0, 1].atan().rad2deg()
    assert slants.abs().max().item() == pytest.approx(10, rel=0.01)
    assert slants.mean().abs() < 0.5
    # width and height, and every part of the field, each for itself; so every image, too
    for each in (scaled, field.flatten(1)):
        assert (torch.corrcoef(each.T) - torch.eye(each.shape[1])).abs().max() < 0.1
    assert (torch.corrcoef(field[:20].flatten(1)) - torch.eye(20)).abs().max() < 0.5


def test_an_image_s_strength_multiplies_all_its_values() -> None:
    count = 4000
    full = Augmentation(**ALL).draw(count, (0,))
    mixed = Augmentation(**ALL, min_strength=0.25).draw(count, (0,))
    strength = mixed[:, :, 3:] / full[:, :, 3:]  # the same draws, each times that of its image
    assert torch.allclose(strength, strength[:, :1, :1].expand_as(strength), rtol=1e-4)
    strength = strength[:, 0, 0]
    assert 0.25 <= strength.min() < 0.26 < 0.99 < strength.max() <= 1
    assert strength.mean().item() == pytest.approx(0.625, rel=0.02)
    turned = Augmentation(rotation=30.0).draw(count, (0,))
    less = Augmentation(rotation=30.0, min_strength=0.25).draw(count, (0,))
    angles = [torch.atan2(each[:, 1, 0], each[:, 0, 0]) for each in (turned, less)]
    factor = (angles[1] / angles[0])[angles[0].abs() > 0.01]
    assert 0.25 <= factor.min() < 0.26 < 0.99 < factor.max() <= 1 + 1e-4


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=f"`min_strength` to be from 0 to 1, but got {value}"):
        Augmentation(min_strength=value)


def test_the_same_seed_epoch_and_position_give_the_same_batch() -> None:
    first, again = list(source()), list(source())
    for (ours, _), (theirs, _) in zip(first, again, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    # of one image alone, which is in the same place in every epoch
    alone = [
        next(iter(source(indices=torch.tensor([4]), epoch=epoch, shuffle_seed=seed)))[0]
        for epoch, seed in ((0, 3), (1, 3), (0, 4))
    ]
    assert not any(torch.equal(*pair) for pair in combinations(alone, 2))
    # in another place
    images, labels = zip(*source(indices=torch.full((10,), 4)), strict=True)
    assert torch.cat(labels).tolist() == [4] * 10
    assert not any(torch.equal(*pair) for pair in combinations(torch.cat(images), 2))


def test_the_batch_depends_on_seed_epoch_and_position_alone() -> None:
    seed_everything(1, verbose=False)
    state, first = torch.get_rng_state(), list(source())
    assert torch.equal(torch.get_rng_state(), state)
    seed_everything(2, verbose=False)
    assert torch.equal(list(source())[1][0], first[1][0])
    # nor have the images before it
    late = source()
    late.load_state_dict({"position": 2})
    assert torch.equal(next(iter(late))[0], first[2][0])
    # and to look at the first batch changes nothing
    looked = source()
    iterator = iter(looked)
    next(iterator)
    assert torch.equal(looked.peek()[0], first[0][0])
    assert torch.equal(next(iterator)[0], first[1][0])
    assert looked.state_dict() == {"position": 2}


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_shares_of_all_ranks_are_the_batch_of_one(world_size: int) -> None:
    shares = [list(source(world_size, rank)) for rank in range(world_size)]
    for whole, *parts in zip(source(), *shares, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part[0], whole[0][rank::world_size])
            assert torch.equal(part[1], whole[1][rank::world_size])


def test_what_is_evaluated_is_never_augmented(data_dir: str) -> None:
    data = MNISTWithTrainSet(
        data_dir=data_dir, test_train_set=True, augmentation=Augmentation(**ALL)
    )
    data.setup("fit")
    data.setup("test")
    loaders = [data.val_dataloader(), *data.test_dataloader(), data.predict_dataloader()]
    for loader in loaders:
        served = torch.cat([images for images, _ in loader])
        assert served.dtype == torch.uint8
        assert torch.equal(served, loader.images[loader.indices])
    images, _ = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 255 + 1e-3


def shipped() -> dict[str, dict[str, float]]:
    """Return the amplitudes of all configs that deform, and those of the prototype for them."""
    found = {"prototype": {**ALL, "shift": 0.12 * 28, "elastic": 0.98}}
    for path in sorted(CONFIGS.glob("*.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8")).get("data", {})
        if "augmentation" in data:
            found[path.stem] = data["augmentation"]
    return found


def lost_ink(augmentation: Augmentation) -> float:
    """Return the share of ink that a augmentation moves out of the frame."""
    images, _ = read_digits(train=False)
    coefficients = augmentation.draw(len(images), (0,))
    # an image enlarged by a factor holds as much more ink
    enlarged = 1 / torch.linalg.det(coefficients[:, :, :2])
    ink = resample(images, sampling_grid(coefficients)).sum((1, 2)) / enlarged
    return float(1 - ink.sum() / images.sum())


@pytest.mark.parametrize("name", shipped())
def test_ink_stays_in_the_frame(name: str) -> None:
    assert abs(lost_ink(Augmentation(**shipped()[name]))) < 0.01


def test_ink_that_leaves_the_frame_is_noticed() -> None:
    assert lost_ink(Augmentation(shift=7.0)) > 0.02


@pytest.mark.parametrize("name", MAX_VALUES)
@pytest.mark.parametrize("value", [-0.1, 1000.0, float("nan")])
def test_an_amplitude_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"Expected `{name}` to be from 0 to .*, but got {value}"):
        Augmentation(**{name: value})


def test_a_run_logs_augmented_images_once(data_dir: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--data.data_dir", data_dir, "--model.hidden_dims", "[]"]
    main(["fit", *options, "--data.augmentation.rotation", "10", "--trainer.max_epochs", "1"])
    main(["fit", *options, "--trainer.max_epochs", "1"])
    folder = Path("lightning_logs")
    events = EventAccumulator(str(folder / "version_0")).Reload()
    (shown,) = events.Images("z_pictures/augmented")
    assert shown.step == 0
    assert (shown.height, shown.width) == (10 * 30 + 2, 10 * 30 + 2)
    other = EventAccumulator(str(folder / "version_1")).Reload()
    assert "z_pictures/augmented" not in other.Tags()["images"]
    curves = [read_curves(folder / f"version_{k}")["train/loss"] for k in (0, 1)]
    assert curves[0] != curves[1]
    main(["fit", "--ckpt_path", str(folder / "version_0" / "checkpoints" / "last.ckpt"),
          "--trainer.max_epochs", "2"])  # fmt: skip
    assert (
        len(EventAccumulator(str(folder / "version_0")).Reload().Images("z_pictures/augmented"))
        == 1
    )
    config = yaml.safe_load((folder / "version_0" / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["augmentation"]["rotation"] == 10  # taken from the checkpoint
