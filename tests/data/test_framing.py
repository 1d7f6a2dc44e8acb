import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fnn_lightning.commands.datamodules import MNISTOrPictures
from fnn_lightning.data.framing import read_framed, resize_picture
from fnn_lightning.data.preprocessing import to_mnist
from fnn_lightning.data.raw_pixels import raw_pixels
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.lit_module import FNNLitModule

GREY = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "I"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_grey_picture_of_28_by_28_stays_as_it_is(mode: str, format: str) -> None:
    if mode.startswith("I"):
        picture = Image.fromarray(GREY.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        picture = Image.fromarray(GREY).convert(mode)
    content = io.BytesIO()
    if (mode, format) != ("I", "PNG"):  # which newer versions of Pillow write no more
        picture.save(content, format)
        picture = Image.open(content)
    assert np.array_equal(resize_picture(picture).numpy(), GREY)


def test_black_and_white() -> None:
    picture = Image.fromarray(GREY > 127)
    assert picture.mode == "1"
    assert np.array_equal(resize_picture(picture).numpy(), 255 * (GREY > 127))


def test_transparency_is_black() -> None:
    half = np.full((56, 56, 4), 255, np.uint8)
    half[:, :28, 3] = 0
    half[28:, 28:, 3] = 128
    pixels = resize_picture(Image.fromarray(half))
    assert (pixels[:, :13] == 0).all()
    assert (pixels[:13, 15:] == 255).all()
    assert (pixels[15:, 15:] == 128).all()
    palette = Image.fromarray(np.array([[0, 1]] * 2, np.uint8)).convert("P")
    palette.putpalette([255, 255, 255, 200, 200, 200])
    palette.info["transparency"] = 0
    assert resize_picture(palette).unique().tolist()[0] == 0


def test_the_whole_picture_is_stretched_and_antialiased() -> None:
    stripes = np.zeros((560, 280), np.uint8)
    stripes[:, ::2] = 255  # finer than a pixel
    stripes[280:] = 0
    pixels = resize_picture(Image.fromarray(stripes))
    assert ((pixels[:13] > 118) & (pixels[:13] < 138)).all()
    assert (pixels[15:] == 0).all()


def test_colour_is_weighed_by_luma() -> None:
    for colour, level in (("red", 76), ("lime", 150), ("blue", 29)):
        assert resize_picture(Image.new("RGB", (50, 40), colour)).unique().tolist() == [level]


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° clockwise to be upright
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(GREY, -1)
    assert np.array_equal(read_framed(tmp_path / "a.png", "resize").numpy(), expected)
    for x in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert np.array_equal(raw_pixels(x, "resize")[0][0].numpy(), expected)


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for name, levels in (("a", GREY.astype(np.float32)), ("b", GREY.astype(np.int32) * 70_000)):
        Image.fromarray(levels).save(tmp_path / f"{name}.tiff")
        with pytest.raises(InputError, match=r"32 bits, of a range .*: save it with 8 or 16"):
            read_framed(tmp_path / f"{name}.tiff", "resize")


def digit(path: Path) -> Image.Image:
    pixels = np.zeros((60, 90), np.uint8)
    pixels[10:50, 20:28] = 255
    picture = Image.fromarray(pixels)
    picture.save(path)
    return picture


def test_predict_frames_pictures_as_in_training(tmp_path: Path) -> None:
    picture = digit(tmp_path / "a.png")
    for framing, expected in (("mnist", to_mnist(picture)), ("resize", resize_picture(picture))):
        net = FNNLitModule(hidden_dims=[8], framing=framing).eval()  # type: ignore[arg-type]
        assert torch.equal(raw_pixels(picture, framing)[0][0], expected)  # type: ignore[arg-type]
        predicted = net.predict(tmp_path / "a.png").probabilities
        torch.testing.assert_close(predicted, net(expected[None]).softmax(dim=1)[0])
        data = MNISTOrPictures(images=[str(tmp_path)], framing=framing)
        data.setup("predict")
        assert torch.equal(next(iter(data.predict_dataloader()))[0][0], expected)


def test_the_data_say_how_pictures_are_framed() -> None:
    assert MNISTDataModule(dataset="digits").framing == "mnist"
    assert MNISTDataModule(dataset="digits", framing="resize").framing == "resize"
    assert MNISTDataModule(dataset="a.npz").framing == "resize"
    assert MNISTDataModule(dataset="a.npz", framing="mnist").framing == "mnist"


def test_a_message_speaks_of_digits_where_it_is_about_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a picture of a digit, but got"):
        raw_pixels(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a picture, but got"):
        raw_pixels(tmp_path / "a.png", "resize")
