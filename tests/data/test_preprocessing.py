import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from fnn_lightning.commands.main import main
from fnn_lightning.data.preprocessing import (
    drawing_to_mnist,
    find_pictures,
    out_of_distribution,
    read_picture,
    to_mnist,
)
from fnn_lightning.errors import InputError
from fnn_lightning.runs.load import load_trained

EXIF_ORIENTATION = 0x0112


def letter(scale: int = 5) -> np.ndarray:
    """Draw an L of 20×12 units with strokes of 4 units, ink 1 on 0, off the picture's centre."""
    ink = np.zeros((40 * scale, 60 * scale))
    ink[9 * scale : 29 * scale, 30 * scale : 34 * scale] = 1
    ink[25 * scale : 29 * scale, 30 * scale : 42 * scale] = 1
    return ink


def expected_letter() -> np.ndarray:
    """Return where the ink of the converted L must be.

    Its centre of mass is (12.286, 3.714) units from its box's corner: of 80 units of area the
    bar has its centre at (10, 2), of 32 the rest of the foot at (18, 8). In pixels, whose centres
    lie at halves, that is (11.786, 3.214); to be at 14, the box begins at row 2, column 11.
    """
    expected = np.zeros((28, 28), bool)
    expected[2:22, 11:15] = True
    expected[18:22, 11:23] = True
    return expected


def picture(ink: np.ndarray, paper: float = 255, pen: float = 0) -> Image.Image:
    levels = paper + (pen - paper) * ink
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def inked(pixels: Tensor) -> np.ndarray:
    return pixels.numpy() > 127


def transparent(pen: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", picture(letter()).size, (*pen, 0))
    image.putalpha(Image.fromarray((255 * letter()).astype(np.uint8)))
    return image


def deep(paper: int, pen: int) -> Image.Image:
    return Image.fromarray((paper + (pen - paper) * letter()).astype(np.uint16))


def coloured(paper: tuple[int, int, int], pen: tuple[int, int, int]) -> Image.Image:
    ink = letter()[..., None]
    return Image.fromarray((np.array(paper) * (1 - ink) + np.array(pen) * ink).astype(np.uint8))


KINDS = {
    "dark on light": picture(letter()),
    "light on dark": picture(letter(), paper=0, pen=255),
    "grey on grey": picture(letter(), paper=120, pen=100),
    "one bit": picture(letter()).convert("1"),
    "palette": coloured((250, 240, 200), (40, 60, 160)).convert("P"),
    "CMYK": picture(letter()).convert("CMYK"),
    "16 bit": deep(65_535, 0),
    "12 bit in 16, light on dark": deep(100, 4_000),
    "float": Image.fromarray((1 - 0.5 * letter()).astype(np.float32)),
    "yellow on white": coloured((255, 255, 255), (255, 255, 60)),
    "red on a green as bright": coloured((0, 130, 0), (255, 0, 0)),
    "black on nothing": transparent((0, 0, 0)),
    "white on nothing": transparent((255, 255, 255)),
    "with a grey channel of transparency": transparent((0, 0, 0)).convert("LA"),
    "large": picture(letter(50)),
    "small": picture(letter(1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_picture_is_cropped_scaled_and_centred_by_its_mass(kind: str) -> None:
    pixels = to_mnist(KINDS[kind])
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (28, 28)
    assert np.array_equal(inked(pixels), expected_letter())
    assert pixels.max() == 255
    assert pixels[0, 0] == 0


def test_of_a_drawing_all_counts_up_to_the_edge() -> None:
    ink = letter()[45:145, 150:210].astype(np.float32)  # the L alone, at all four edges
    assert np.array_equal(inked(drawing_to_mnist(ink)), expected_letter())
    frame = np.zeros((280, 280), np.float32)
    frame[:28] = frame[-28:] = frame[:, :28] = frame[:, -28:] = 1
    frame[70:84, 70:84] = 1  # less than what is dirt on a photo
    pixels = inked(drawing_to_mnist(frame))
    assert pixels.any(axis=1).sum() == pixels.any(axis=0).sum() == 20
    assert ndimage.label(pixels)[1] == 2


@pytest.mark.parametrize(("side", "reason"), [(0, "blank"), (24, "draw a larger digit")])
def test_a_blank_drawing_and_a_dot_are_refused(side: int, reason: str) -> None:
    ink = np.zeros((280, 280), np.float32)
    ink[100 : 100 + side, 100 : 100 + side] = 1
    with pytest.raises(InputError, match=reason):
        drawing_to_mnist(ink)


def test_a_ruled_frame_is_excluded() -> None:
    ink = np.pad(letter(), 40)
    ink[5:8, 5:-5] = ink[-8:-5, 5:-5] = 1
    ink[5:-5, 5:8] = ink[5:-5, -8:-5] = 1
    assert np.array_equal(inked(to_mnist(picture(ink))), expected_letter())


@pytest.mark.parametrize(("desk", "paper", "pen"), [(60, 240, 60), (250, 10, 240), (10, 250, 10)])
def test_a_digit_on_a_sheet_with_visible_edges_is_found(desk: int, paper: int, pen: int) -> None:
    levels = np.pad(paper + (pen - paper) * letter(), 40, constant_values=desk)
    image = Image.fromarray(levels.astype(np.uint8))
    # cropping the sheet's blurred edge shifts the centre slightly
    assert (inked(to_mnist(image)) != expected_letter()).sum() <= 8


def test_two_digits_are_reported() -> None:
    two = np.concatenate([letter(), letter()], axis=1)
    assert "more than one digit" in out_of_distribution(to_mnist(picture(two)), 1.0)
    assert "more than one digit" not in out_of_distribution(to_mnist(picture(letter())), 1.0)


def test_pixels_of_a_tiny_range_are_read_and_of_a_huge_range_rejected(tmp_path: Path) -> None:
    levels = (1e-30 * letter()).astype(np.float32)
    Image.fromarray(levels).save(tmp_path / "small.tiff")
    assert np.array_equal(inked(read_picture(tmp_path / "small.tiff")), expected_letter())
    levels[0, 0], levels[9, 9] = 3e38, -3e38
    Image.fromarray(levels).save(tmp_path / "large.tiff")
    with pytest.raises(InputError, match="it is"):
        read_picture(tmp_path / "large.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photo_is_applied(orientation: int, tmp_path: Path) -> None:
    undo = {  # makes each orientation from an upright picture
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = picture(letter())
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert np.array_equal(inked(read_picture(tmp_path / "photo.jpg")), expected_letter())


STROKES = {
    "0": [[(9, 3), (3, 9), (2, 15), (8, 20), (13, 14), (14, 8), (9, 3)]],
    "1": [[(5, 2), (3, 20)]],
    "4": [[(3, 2), (2, 11), (14, 12)], [(12, 1), (11, 20)]],
    "5": [[(4, 2), (3, 9), (11, 10), (12, 16), (3, 20)], [(5, 2), (15, 2)]],
    "7": [[(2, 3), (14, 2), (8, 20)], [(5, 11), (15, 11)]],
}


@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize("width", [2, 3])
def test_an_image_like_mnists_stays_as_it_is(digit: str, width: int) -> None:
    image = Image.new("L", (200, 240), 255)
    pen = ImageDraw.Draw(image)
    for stroke in STROKES[digit]:
        pen.line([(10 * x + 15, 10 * y + 5) for x, y in stroke], 0, 10 * width, "curve")
    once = to_mnist(image)
    assert once.max() == 255
    for pixels in (once, 255 - once):
        difference = to_mnist(Image.fromarray(pixels.numpy())).int() - once
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "jpg", "webp"])
def test_every_format_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"digit.{suffix}"
    picture(letter()).save(path)
    assert np.array_equal(inked(read_picture(path)), expected_letter())


@pytest.mark.parametrize("seed", range(5))
def test_a_digit_is_found_despite_uneven_light_noise_and_blur(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    ink = ndimage.gaussian_filter(letter(10), 3)
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    direction = rng.uniform(0, 2 * np.pi)
    light = 150 + 60 * (np.cos(direction) * x + np.sin(direction) * y) - 30 * (x * x + y * y)
    levels = light * (1 - 0.5 * ink) + rng.normal(0, 8, ink.shape)
    assert levels[ink < 0.01].min() < levels[ink > 0.99].max()  # no single threshold works
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(tmp_path / "a.jpg", quality=60)
    pixels = read_picture(tmp_path / "a.jpg")
    actual, expected = inked(pixels), expected_letter()
    around = np.ones((3, 3))  # blur moves every edge by up to a pixel
    assert not (actual & ~ndimage.binary_dilation(expected, around)).any()
    assert not (expected & ~ndimage.binary_dilation(actual, around)).any()
    assert pixels.numpy()[~ndimage.binary_dilation(expected, around, 2)].max() < 20


def test_fine_strokes_are_widened() -> None:
    ink = np.zeros((300, 300))
    ink[50:250, 150:152] = 1  # a hundredth as wide as long
    pixels = to_mnist(picture(ink)).numpy()
    rows = pixels[6:22] / 255
    assert rows.sum(axis=1) == pytest.approx(2.5, abs=0.6)
    assert (pixels[:4] == 0).all()


def test_dirt_and_a_finger_at_the_edge_are_excluded() -> None:
    ink = letter()
    ink[3:6, 5:8] = 1
    ink[150:200, 250:300] = 1
    assert np.array_equal(inked(to_mnist(picture(ink))), expected_letter())


def test_a_digit_that_touches_the_edge_is_kept() -> None:
    ink = letter()
    height, width = ink.shape
    row, column = (int(np.flatnonzero(ink.any(axis))[0]) for axis in (1, 0))
    tight = ink[row:height, column:width]
    assert np.array_equal(inked(to_mnist(picture(tight))), expected_letter())


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


NOISE = np.random.default_rng(0).normal(200, 10, (200, 300))
BAD: dict[str, tuple[Any, str]] = {
    "white": (Image.new("L", (300, 200), 255), "it is blank"),
    "noise": (picture(np.zeros((200, 300)), paper=NOISE), "it is blank"),  # type: ignore[arg-type]
    "shade": (picture(np.zeros((200, 300)), paper=np.linspace(90, 250, 300)), "it is blank"),  # type: ignore[arg-type]
    "clear": (Image.new("RGBA", (300, 200), (0, 0, 0, 0)), "it is blank"),
    "deep": (Image.new("I;16", (300, 200), 777), "it is blank"),
    "tiny": (Image.new("L", (7, 300), 255), "it is too small: 7×300 pixels"),
    "speck": (picture(np.pad(np.ones((5, 4)), 30)), "too small: what stands out measures 4×5 "),
    "text": (b"hello", "it is not a PNG, JPEG, BMP, TIFF, GIF or WebP file"),
    "other": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not a PNG"),
    "empty": (b"", "it is empty"),
    "film": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "it is not a PNG"),
    "HEIC": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "a HEIC, .* picture: convert it to PNG or JPEG",
    ),
    "scrambled": (png(100, 100, b"?" * 50), "it is damaged or truncated"),
    "bomb": (png(50_000, 50_000, zlib.compress(b"")), "it has more than 89,478,485 pixels"),
    "large": (png(10_000, 10_000, zlib.compress(b"")), "it has more than 89,478,485 pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_without_a_digit_is_rejected_with_the_reason(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    path = tmp_path / "bad.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    with pytest.raises(InputError, match=message):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "jpg", "webp"])
def test_truncated_files_are_rejected(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"digit.{suffix}"
    picture(letter()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"it is (damaged or truncated|not a PNG)"):
        read_picture(path)


def test_pictures_are_found_by_file_folder_and_glob(tmp_path: Path) -> None:
    for name in ("scans/b.PNG", "scans/a.jpeg", "scans/notes.txt", "scans/deep/c.gif", "d[1].bin",
                 "phone/b.webp", "phone/a.HEIC", "phone/c.mov"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*paths: str) -> list[str]:
        return [str(each) for each in find_pictures(list(paths))]

    assert found("scans") == ["scans/a.jpeg", "scans/b.PNG"]
    assert found("phone") == ["phone/a.HEIC", "phone/b.webp"]
    assert found("d[1].bin", "scans/*.PNG") == ["d[1].bin", "scans/b.PNG"]
    assert found("scans/**/*.gif", "scans/*", "scans/a.jpeg") == [
        "scans/deep/c.gif",
        "scans/a.jpeg",
        "scans/b.PNG",
    ]
    assert found(str(tmp_path / "s*" / "*")) == [
        str(tmp_path / name) for name in ("scans/a.jpeg", "scans/b.PNG")
    ]
    (tmp_path / "bare").mkdir()
    for wrong in (["nothing.png"], ["*.bmp"], ["bare"], ["scans", "nothing.png"], []):
        with pytest.raises(InputError, match=r"Expected pictures, but got .*(nothing|no|none)"):
            find_pictures(wrong)


def test_images_unlike_the_training_data_are_reported() -> None:
    bar = torch.zeros(28, 28, dtype=torch.uint8)
    bar[4:24, 12:15] = 255  # 60 pixels of ink
    assert out_of_distribution(bar, 0.95) == ""
    assert out_of_distribution(bar, 0.79) == "unsure"
    thin = torch.zeros(28, 28, dtype=torch.uint8)
    thin[4:24, 12] = 200  # 15.7
    assert out_of_distribution(thin, 0.5) == "unsure, thinner than any MNIST digit, " + (
        "narrower or wider than any MNIST digit"
    )
    block = torch.zeros(28, 28, dtype=torch.uint8)
    block[4:24, 4:20] = 255
    assert out_of_distribution(block, 1.0) == "thicker than any MNIST digit"
    assert out_of_distribution(bar.T, 1.0) == "narrower or wider than any MNIST digit"


def through_a_file(image: Image.Image) -> Tensor:
    image.save("digit.png")
    return read_picture(Path("digit.png"))


def on_white_paper(pixels: np.ndarray) -> Image.Image:
    """Draw a digit dark, 150 pixels high in the middle of 200×150."""
    paper = Image.new("L", (200, 150), 255)
    digit = Image.fromarray(255 - pixels).resize((150, 150), Image.Resampling.BICUBIC)
    paper.paste(digit, (25, 0))
    return paper


@pytest.mark.slow
def test_accuracy_is_the_same_when_test_images_come_as_pictures(real_data_dir: str) -> None:
    main(["fit", "--data.data_dir", real_data_dir, "--trainer.max_epochs", "2"])
    trained = load_trained("lightning_logs/version_0")
    data = trained.data()
    data.setup("test")
    dataloader = data.test_dataloader()
    assert not isinstance(dataloader, list)

    def correct(images: Tensor, labels: Tensor) -> int:
        return int((trained.probabilities(images).argmax(dim=1) == labels).sum())

    images, labels = dataloader.images[::10], dataloader.labels[::10]
    pictures = torch.stack([through_a_file(Image.fromarray(each.numpy())) for each in images])
    assert abs(correct(pictures, labels) - correct(images, labels)) <= 2  # 0.2 points
    assert float((pictures.int() - images).abs().float().mean()) < 1

    images, labels = dataloader.images[::40], dataloader.labels[::40]
    pictures = torch.stack([through_a_file(on_white_paper(each.numpy())) for each in images])
    assert correct(pictures, labels) >= 0.97 * correct(images, labels)
