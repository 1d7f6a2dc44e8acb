"""Brings any picture of a handwritten digit to MNIST's form, the way MNIST was made."""

import contextlib
import glob
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

from fnn_lightning.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")

SIDE, BOX = 28, 20  # pixels of an MNIST image, and of the box in it that the digit fills
WORKING_SIDE = 800  # pixels; larger pictures are reduced to it, which still shows any pen's stroke
LEAST_SIDE = 8  # pixels; a shorter digit cannot be told from dirt
LEAST_PAPER = 60  # grey levels of 255; the noise of darker paper would pass for ink
LEAST_CONTRAST = 12  # grey levels of 255 between ink and paper; a faint pencil has some 30
PAPER_WINDOW = 1 / 2  # of the longer side: wider than any stroke
SHEET = 0.93  # a part that fills as much of its box is a sheet of paper; a 0 fills 0.79
# widths of the strokes in MNIST, in pixels of 28: the 5th percentile, and the usual
STROKES = (1.7, 2.5)

# What all of MNIST's 60,000 training images keep to.
INK = (19.9, 311.8)  # sum of the pixels, divided by 255
ASPECT = (0.10, 2.23)  # width of the inked box divided by its height
# A net of configs/mnist.yaml gives 118 of the 5,000 held-out training images less than this, and
# takes 41 % of them for another digit; of the others it does so with 1 %.
SURE = 0.8

Grey = NDArray[np.float32]


def find_pictures(paths: list[str]) -> list[Path]:
    """Find the pictures that files, folders and globs name.

    Args:
        paths: Files, taken whatever they are called; folders, of which the files with the suffix
            of a picture are taken, by name; or globs such as `scans/**/*.png`.

    Raises:
        InputError: If one of them names nothing.
    """
    if not paths:
        raise InputError("Expected pictures, but got none: name files, folders or globs")
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            found.append(path)
            continue
        if path.is_dir():
            inside = sorted(path.iterdir())
        elif path.exists():
            raise InputError(f"Expected a picture or a folder of them, but got {given}")
        else:
            # Path.glob takes no absolute pattern
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207
            inside = sorted(map(Path, names))
        pictures = [each for each in inside if each.is_file() and each.suffix.lower() in SUFFIXES]
        if not pictures:
            nothing = "no picture in it" if path.is_dir() else "there is no such file"
            raise InputError(f"Expected pictures, but got {given}: {nothing}")
        found += pictures
    return list(dict.fromkeys(found))


def read_picture(path: Path) -> Tensor:
    """Read a picture file and bring it to MNIST's form.

    Args:
        path: A PNG, JPEG, BMP, TIFF or GIF file; of several frames the first is taken.

    Returns:
        `uint8` of shape `(28, 28)`, ink 255 on 0.

    Raises:
        InputError: If it is not such a file, is damaged or too large, or shows no digit.
    """
    try:
        if not path.stat().st_size:
            raise InputError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which nothing depends on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # the formats are named since Pillow would start other programs for some
            with Image.open(path, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"it claims more than the {Image.MAX_IMAGE_PIXELS:,} pixels that are read"
        ) from None
    except UnidentifiedImageError:
        raise InputError("it is not a PNG, JPEG, BMP, TIFF or GIF file") from None
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"it cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise InputError(f"it is damaged or cut short: {error}") from error
    try:
        return to_mnist(upright)
    except (ArithmeticError, ValueError) as error:  # levels of an extreme range, say
        if isinstance(error, InputError):
            raise
        raise InputError(f"no digit can be found in it: {error}") from error


def to_mnist(image: Image.Image) -> Tensor:
    """Bring a picture of a digit to MNIST's form.

    The ink is found as what stands out from the paper around it, cropped, scaled into 20×20
    keeping its shape, and centred by its centre of mass in 28×28: what LeCun et al. did with
    NIST's (http://yann.lecun.com/exdb/mnist/). An image that is in this form already comes out
    as it is.

    Args:
        image: Of any size and mode; dark on light or light on dark; transparent parts are paper.

    Returns:
        `uint8` of shape `(28, 28)`, ink 255 on 0.

    Raises:
        InputError: If nothing stands out from the paper, or too little for a digit.
    """
    if min(image.size) < LEAST_SIDE:
        raise InputError(f"it is too small: {image.width}×{image.height} pixels")
    return torch.from_numpy(framed(find_digit(grey_of(image))))


def grey_of(image: Image.Image) -> Grey:
    """Return a picture's levels, 0–255, at most `WORKING_SIDE` pixels long.

    They are those of the colour channel with the greatest contrast, which shows coloured ink best.
    """
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits, of a range that the file does not tell
        levels = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        levels = (levels - levels.min()) * (255 / (float(np.ptp(levels)) or 1))
        return np.asarray(reduced(Image.fromarray(levels.astype(np.float32))))
    image = reduced(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if image.mode == "RGBA":
        for paper in ("white", "black"):  # white ink shows on black only
            backdrop = Image.new("RGBA", image.size, paper)
            flat = Image.alpha_composite(backdrop, image).convert("RGB")
            if np.ptp(np.asarray(flat)) >= LEAST_CONTRAST:
                break
        image = flat
    return max((np.asarray(channel, np.float32) for channel in image.split()), key=np.std)


def reduced(image: Image.Image) -> Image.Image:
    """Reduce a picture whose longer side exceeds `WORKING_SIDE`."""
    longer = max(image.size)
    if longer <= WORKING_SIDE:
        return image
    width, height = (max(1, round(side * WORKING_SIDE / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX, reducing_gap=2)


def ink_of(grey: Grey) -> Grey:
    """Tell ink from paper.

    What is left of uneven light after its trend is taken off is told from ink by a grey-scale
    opening, with a window wider than a stroke: shadows outlast it, strokes do not. An even paper
    stays exactly even.

    Args:
        grey: Levels 0–255 of shape `(H, W)`.

    Returns:
        How far each pixel stands out from the paper, in grey levels, 0 or more; of dark ink, as it
        would on white paper.
    """
    grey = ndimage.gaussian_filter(grey, max(grey.shape) / 500)  # the grain of a photo
    trend = paper_trend(grey)
    flat = grey - trend
    smooth = ndimage.uniform_filter(flat, 3)
    dark = -smooth.min() > smooth.max()
    if dark:
        flat = -flat
    step = max(1, max(flat.shape) // 100)  # a coarse copy shows shades as well
    coarse = ndimage.uniform_filter(flat, step)[step // 2 :: step, step // 2 :: step]
    window = max(3, round(PAPER_WINDOW * max(coarse.shape)))
    paper = ndimage.grey_opening(coarse, size=(window, window))
    shade = np.asarray(Image.fromarray(paper).resize(flat.shape[::-1], Image.Resampling.BILINEAR))
    ink: Grey = flat - shade
    if dark:  # in half the light, ink is half as far from the paper
        ink *= 255 / np.clip(trend - shade, LEAST_PAPER, 255)
    return ink.clip(0)


def paper_trend(grey: Grey) -> Grey:
    """Fit a quadratic surface to the border of a picture, which is paper for the most part."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    border = np.ones(grey.shape, bool)
    border[1:-1, 1:-1] = False
    rows, levels = terms[border], grey[border].astype(np.float64)
    off = np.abs(levels - np.median(levels))
    for _ in range(5):  # ink and fingers at the border must not bend it
        paper = off <= max(3 * np.median(off), 1)
        fit = np.linalg.lstsq(rows[paper], levels[paper], rcond=None)[0]
        off = np.abs(levels - rows @ fit)
    surface: Grey = np.round(terms @ fit, 3).astype(np.float32)
    return surface


def otsu(values: Grey) -> float:
    """Return the threshold that parts values best into two classes (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between)])


def find_digit(grey: Grey) -> Grey:
    """Crop the digit; if it is on a sheet, of which the picture shows the edges, that on the sheet.

    Args:
        grey: Levels 0–255 of shape `(H, W)`.

    Returns:
        What `digit_in` does.
    """
    digit, (rows, columns) = digit_in(ink_of(grey))
    sheet = ndimage.binary_fill_holes(digit > 0.3).mean() > SHEET
    if sheet and all(3 * side > whole for side, whole in zip(digit.shape, grey.shape, strict=True)):
        inset = max(2, max(digit.shape) // 30)  # the sheet's edge is blurred
        inside = grey[rows, columns][inset:-inset, inset:-inset]
        with contextlib.suppress(InputError):  # a blank one: it was the digit, a bold 1 perhaps
            return digit_in(ink_of(inside))[0]
    return digit


def digit_in(ink: Grey) -> tuple[Grey, tuple[slice, slice]]:
    """Crop the digit, without dirt, noise and the dark edges of a photo.

    Args:
        ink: How far each pixel stands out from the paper, in grey levels.

    Returns:
        The digit's box, where 0 is paper and 1 full ink, and its place.

    Raises:
        InputError: If nothing stands out, or it is too small for a digit.
    """
    blank = InputError("it is blank: nothing stands out from the paper")
    if ink.max() < LEAST_CONTRAST:
        raise blank
    threshold = otsu(ink)
    strong = ink > threshold
    paper = ink[~strong]
    level = float(np.median(paper))
    noise = 1.4826 * float(np.median(np.abs(paper - level)))
    full = float(np.percentile(ink[strong], 90))
    if full - level < max(LEAST_CONTRAST, 5 * noise):  # noise alone has 3.5 to 4.6
        raise blank
    faint = ink > level + max(3 * noise, 0.1 * (full - level))
    parts, count = ndimage.label(faint, np.ones((3, 3)))
    weights = ndimage.sum_labels(strong, parts, range(1, count + 1))
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    inner = ~np.isin(np.arange(1, count + 1), border)
    if (weights * inner).max() > weights.max() / 4:
        weights = weights * inner  # a finger or the edge of the paper came in
    around = np.array(
        [is_frame(parts[place] == k + 1) for k, place in enumerate(ndimage.find_objects(parts))]
    )
    if (weights * ~around).max() > 0:
        weights = weights * ~around
    kept = np.isin(parts, 1 + np.flatnonzero(weights > 0.03 * weights.max()))
    rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = kept[box].shape
    if max(height, width) < LEAST_SIDE:
        raise InputError(f"it is too small: what stands out measures {width}×{height} pixels")
    digit = np.where(ndimage.binary_dilation(kept, iterations=2), ink - level, 0)[box]
    digit = np.where(digit < 3 * noise, 0, digit / (full - level))
    cropped: Grey = np.clip(digit, 0, 1).astype(np.float32)
    return cropped, box


def is_frame(part: NDArray[np.bool_]) -> bool:
    """Tell whether a part of the ink is a ruled rectangle around something, by its box."""
    height, width = part.shape
    if min(height, width) < 3 * LEAST_SIDE or part.mean() > 0.5:
        return False
    edge = max(1, min(height, width) // 20)  # it may be a little askew
    sides = (part[:edge].any(0), part[-edge:].any(0), part[:, :edge].any(1), part[:, -edge:].any(1))
    return all(side.mean() > 0.9 for side in sides)


def framed(digit: Grey) -> NDArray[np.uint8]:
    """Scale a digit into 20×20, and centre it by its centre of mass in 28×28.

    Args:
        digit: Its box; 0 is paper, 1 full ink.

    Returns:
        Levels 0–255 of shape `(28, 28)`.
    """
    if max(digit.shape) not in (BOX - 1, BOX):  # resampling by one pixel would only blur
        digit = scaled(thickened(digit), BOX)
    digit = digit / digit.max()
    pixels = np.zeros((SIDE, SIDE), np.float32)
    corner = [
        # to a hundredth first: a symmetric digit must not jump with the rounding of its pixels
        int(np.clip(np.rint(np.round(SIDE / 2 - centre, 2)), 0, SIDE - side))
        for centre, side in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    ]
    pixels[corner[0] :, corner[1] :][: digit.shape[0], : digit.shape[1]] = digit
    return np.rint(255 * pixels).astype(np.uint8)


def thickened(digit: Grey) -> Grey:
    """Widen the strokes of a fine pen, which would all but vanish in 28×28, to MNIST's.

    Args:
        digit: Its box; 0 is paper, 1 full ink.

    Returns:
        The same digit, ten times as large as it will be.
    """
    digit = scaled(digit, 10 * BOX)
    inked = digit > 0.3
    # the mean distance to the edge of a stroke is a quarter of its width
    width = 4 * float(ndimage.distance_transform_edt(inked)[inked].mean() - 0.5) / 10
    if width >= STROKES[0]:
        return digit
    radius = round(10 * (STROKES[1] - width) / 2)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = x * x + y * y <= radius * radius
    wider: Grey = ndimage.grey_dilation(np.pad(digit, radius), footprint=disc)
    return wider


def scaled(digit: Grey, longer: int) -> Grey:
    """Scale to so many pixels on the longer side, with antialiasing."""
    height, width = (max(1, round(side * longer / max(digit.shape))) for side in digit.shape)
    image = Image.fromarray(digit).resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(image)


def out_of_distribution(pixels: Tensor, probability: float) -> str:
    """Say how a picture is far from the training data, so that the prediction may be chance.

    Args:
        pixels: As the net saw it, `uint8` of shape `(28, 28)`.
        probability: Of the digit that was predicted.

    Returns:
        The reason, "" if there is none.
    """
    ink = float(pixels.sum()) / 255
    rows, columns = (pixels.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    aspect = float(columns[-1] - columns[0] + 1) / float(rows[-1] - rows[0] + 1)
    parts, count = ndimage.label(pixels.numpy() > 63, np.ones((3, 3)))
    weights = ndimage.sum_labels(pixels.numpy(), parts, range(1, count + 1))
    spans = [
        (place[1].start, place[1].stop)
        for place, weight in zip(ndimage.find_objects(parts), weights, strict=True)
        if weight > weights.max() / 4
    ]
    # as 12,000 of MNIST's training images never are
    apart = any(left[1] < right[0] for left, right in pairwise(sorted(spans)))
    reasons: list[Any] = [
        probability < SURE and "unsure",
        ink < INK[0] and "thinner than any MNIST digit",
        ink > INK[1] and "thicker than any MNIST digit",
        apart and "more than one digit, perhaps",
        not ASPECT[0] <= aspect <= ASPECT[1] and "narrower or wider than any MNIST digit",
    ]
    return ", ".join(filter(None, reasons))
