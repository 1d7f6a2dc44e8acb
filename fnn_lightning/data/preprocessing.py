"""Converts a picture of a handwritten digit to an image like MNIST's, by MNIST's own recipe."""

import contextlib
import glob
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

from fnn_lightning.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
# found all the same, so that a message names them
UNREADABLE_SUFFIXES = (".heic", ".heif", ".avif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")

IMAGE_SIZE, BOX_SIZE = 28, 20  # pixels of an MNIST image, and of the box in it that the digit fills
MAX_WORKING_SIZE = 800  # pixels; larger pictures are reduced, which keeps the strokes of any pen
MIN_DIGIT_SIZE = 8  # pixels; anything smaller could be dirt
MIN_DRAWING = 1 / 7  # of the canvas; anything smaller is a dot
MIN_CONTRAST = 12  # grey levels of 255 between ink and paper; a faint pencil has about 30
MIN_PAPER_LEVEL = 60  # grey levels of 255; on darker paper, noise would look like ink
PAPER_WINDOW = 1 / 2  # of the longer side, wider than any stroke
INKED = 0.3  # of full ink; pixels above it belong to a stroke
MIN_SHEET_FILL = 0.93  # of its box; a sheet of paper fills more, a filled 0 only 0.79
# widths of MNIST's strokes, in pixels of 28: the 5th percentile, and the typical one
FINE_STROKE, TYPICAL_STROKE = 1.7, 2.5

# ranges that hold all 60,000 training images of MNIST
INK_RANGE = (19.9, 311.8)  # sum of the pixels, divided by 255
ASPECT_RANGE = (0.10, 2.23)  # width of the inked box divided by its height
# A network of configs/mnist.yaml is less confident than this on 118 of the 5,000 validation
# images. It misclassifies 41 % of these, and 1 % of the others.
MIN_CONFIDENCE = 0.8

FloatImage = NDArray[np.float32]
"""Shape `(H, W)`; grey levels 0–255, or ink from 0 (paper) to 1 (full ink)."""
Box = tuple[slice, slice]
"""Rows and columns of a rectangle in an image."""


class InkLevels(NamedTuple):
    """How the ink of a picture differs from its paper, in grey levels above the local paper."""

    threshold: float
    """Pixels above it are certainly ink."""
    paper: float
    """Median of the paper."""
    noise: float
    """Standard deviation of the paper's noise."""
    contrast: float
    """Level of full ink, minus `paper`."""


def find_pictures(paths: list[str]) -> list[Path]:
    """Find picture files.

    Args:
        paths: Files, whatever their suffix; folders, of which all files with the suffix of a
            picture are used, sorted by name; or globs such as `scans/**/*.png`.

    Returns:
        The files, in order and without duplicates.

    Raises:
        InputError: If there are no paths, or one of them leads to no picture.
    """
    if not paths:
        raise InputError("Expected pictures, but got none: name files, folders or globs")
    pictures: list[Path] = []
    for path in paths:
        pictures += _pictures_at(path)
    return list(dict.fromkeys(pictures))


def _pictures_at(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = sorted(path.iterdir())
    elif path.exists():
        raise InputError(f"Expected a picture or a folder of them, but got {given}")
    else:
        # Path.glob takes no absolute pattern
        candidates = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    pictures = [file for file in candidates if file.is_file() and is_picture_name(file.name)]
    if not pictures:
        reason = "no picture in it" if path.is_dir() else "there is no such file"
        raise InputError(f"Expected pictures, but got {given}: {reason}")
    return pictures


def is_picture_name(name: str) -> bool:
    """Tell by its suffix whether a file is a picture.

    >>> is_picture_name("a.PNG"), is_picture_name("a.heic"), is_picture_name("a.txt")
    (True, True, False)
    """
    return Path(name).suffix.lower() in (*SUFFIXES, *UNREADABLE_SUFFIXES)


def read_picture(path: Path) -> Tensor:
    """Read a picture file and convert it to an image like MNIST's.

    Args:
        path: A PNG, JPEG, BMP, TIFF, GIF or WebP file. Only its first frame is used.

    Returns:
        `uint8` of shape `(28, 28)`, ink 255 on 0.

    Raises:
        InputError: If the file is no such picture, is damaged or too large, or shows no digit.
    """
    picture = load_picture(path)
    try:
        return to_mnist(picture)
    except InputError:
        raise
    except (ArithmeticError, ValueError) as error:  # such as pixels of an extreme range
        raise InputError(f"it shows no recognisable digit: {error}") from error


def load_picture(path: Path) -> Image.Image:
    """Load a picture file, upright.

    Raises:
        InputError: If the file is not a picture of a known format, is damaged, or is too large.
    """
    try:
        if not path.stat().st_size:
            raise InputError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual metadata does not matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # for formats beyond these, Pillow would start other programs
            with Image.open(path, formats=FORMATS) as picture:
                return ImageOps.exif_transpose(picture)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the maximum"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"it is {_unknown_format(path)}") from None
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"it cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can make the decoder fail in any way
        raise InputError(f"it is damaged or truncated: {error}") from error


def _unknown_format(path: Path) -> str:
    with path.open("rb") as file:
        box = file.read(12)[4:]  # an ISO base media file begins with a box that names its brand
    if box.startswith(b"ftyp") and box[4:] in HEIF_BRANDS:
        return "a HEIC, HEIF or AVIF picture: convert it to PNG or JPEG"
    return "not a PNG, JPEG, BMP, TIFF, GIF or WebP file"


def to_mnist(picture: Image.Image) -> Tensor:
    """Convert a picture of a digit to an image like MNIST's.

    The digit is separated from the paper, cropped, scaled to fit 20 × 20 with its aspect ratio
    kept, and centred in 28 × 28 by its centre of mass. The last two steps are how LeCun et al. made
    MNIST from NIST's images (http://yann.lecun.com/exdb/mnist/). An MNIST image stays as it is.

    Args:
        picture: Any size and mode, dark ink on light paper or light on dark. Transparent parts
            count as paper.

    Returns:
        `uint8` of shape `(28, 28)`, ink 255 on 0.

    Raises:
        InputError: If the picture is blank, or the digit or the picture is too small.

    Example:
        >>> picture = Image.new("L", (200, 300), "white")
        >>> picture.paste("black", (90, 50, 120, 250))  # a thick 1, of 30 by 200 pixels
        >>> rows, columns = to_mnist(picture).nonzero().T
        >>> [int(x) for x in (rows.min(), rows.max(), columns.min(), columns.max())]
        [4, 23, 13, 15]
    """
    if min(picture.size) < MIN_DIGIT_SIZE:
        raise InputError(f"it is too small: {picture.width}×{picture.height} pixels")
    digit = find_digit(to_grey(picture))
    return torch.from_numpy(center(fit_box(digit)))


def drawing_to_mnist(ink: FloatImage) -> Tensor:
    """Convert a drawing to an image like MNIST's, as `to_mnist` does a picture.

    A drawing is no photo: all that is drawn belongs to the digit, up to the edge of the canvas.

    Args:
        ink: From 0 (paper) to 1 (full ink), shape `(H, W)`.

    Returns:
        `uint8` of shape `(28, 28)`, ink 255 on 0.

    Raises:
        InputError: If nothing is drawn, or it is too small.

    Example:
        >>> ink = np.zeros((100, 100), np.float32)
        >>> ink[:, 80:] = 1  # along the edge
        >>> rows, columns = drawing_to_mnist(ink).nonzero().T
        >>> [int(x) for x in (rows.min(), rows.max(), columns.min(), columns.max())]
        [4, 23, 12, 15]
    """
    inked = ink > INKED
    if not inked.any():
        raise InputError("it is blank: nothing is drawn")
    digit = ink[bounding_box(inked)]
    if max(digit.shape) < MIN_DRAWING * max(ink.shape):
        raise InputError("it is too small: draw a larger digit")
    return torch.from_numpy(center(fit_box(digit)))


def to_grey(picture: Image.Image) -> FloatImage:
    """Convert a picture to grey levels 0–255, reduced to `MAX_WORKING_SIZE`.

    Of the colour channels, the one with the greatest contrast is used: it shows coloured ink best.
    """
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits, of a range that the file does not tell
        levels = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0)
        levels = (levels - levels.min()) * (255 / (float(np.ptp(levels)) or 1))
        return np.asarray(shrink(Image.fromarray(levels.astype(np.float32))))
    picture = shrink(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    if picture.mode == "RGBA":
        picture = flatten(picture)
    return max((np.asarray(channel, np.float32) for channel in picture.split()), key=np.std)


def flatten(picture: Image.Image) -> Image.Image:
    """Put a transparent picture on white paper, or on black paper if white hides its ink."""
    for paper in ("white", "black"):
        backdrop = Image.new("RGBA", picture.size, paper)
        flat = Image.alpha_composite(backdrop, picture).convert("RGB")
        if np.ptp(np.asarray(flat)) >= MIN_CONTRAST:
            break
    return flat


def shrink(picture: Image.Image) -> Image.Image:
    """Reduce a picture whose longer side exceeds `MAX_WORKING_SIZE`."""
    longer_side = max(picture.size)
    if longer_side <= MAX_WORKING_SIZE:
        return picture
    width, height = (max(1, round(side * MAX_WORKING_SIZE / longer_side)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX, reducing_gap=2)


def extract_ink(grey: FloatImage) -> FloatImage:
    """Separate the ink from paper under uneven light.

    First the trend of the light is subtracted, a smooth surface. Then the shadows: a grey-scale
    opening with a window wider than any stroke removes the strokes and keeps the shadows. Perfectly
    even paper stays perfectly even.

    Args:
        grey: Grey levels 0–255, shape `(H, W)`.

    Returns:
        How far each pixel stands out from the paper, in grey levels, 0 or more. Dark ink is scaled
        as if it were on white paper.
    """
    grey = ndimage.gaussian_filter(grey, max(grey.shape) / 500)  # the grain of a photo
    light = fit_light(grey)
    flat = grey - light
    smooth = ndimage.uniform_filter(flat, 3)
    ink_is_dark = -smooth.min() > smooth.max()
    if ink_is_dark:
        flat = -flat
    shadows = find_shadows(flat)
    ink: FloatImage = flat - shadows
    if ink_is_dark:  # in half the light, ink is half as far from the paper
        ink *= 255 / np.clip(light - shadows, MIN_PAPER_LEVEL, 255)
    return ink.clip(0)


def fit_light(grey: FloatImage) -> FloatImage:
    """Fit a quadratic surface to the border of a picture, which is mostly paper."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    border = np.ones(grey.shape, bool)
    border[1:-1, 1:-1] = False
    border_terms, levels = terms[border], grey[border].astype(np.float64)
    residuals = np.abs(levels - np.median(levels))
    for _ in range(5):  # fit again without ink and fingers at the border
        paper = residuals <= max(3 * np.median(residuals), 1)
        coefficients = np.linalg.lstsq(border_terms[paper], levels[paper], rcond=None)[0]
        residuals = np.abs(levels - border_terms @ coefficients)
    surface: FloatImage = np.round(terms @ coefficients, 3).astype(np.float32)
    return surface


def find_shadows(flat: FloatImage) -> FloatImage:
    """Find what stands out in areas too wide for strokes, by a grey-scale opening."""
    step = max(1, max(flat.shape) // 100)  # shadows are smooth: a coarse copy is enough
    coarse = ndimage.uniform_filter(flat, step)[step // 2 :: step, step // 2 :: step]
    window = max(3, round(PAPER_WINDOW * max(coarse.shape)))
    opened = ndimage.grey_opening(coarse, size=(window, window))
    width, height = flat.shape[::-1]
    return np.asarray(Image.fromarray(opened).resize((width, height), Image.Resampling.BILINEAR))


def otsu_threshold(values: FloatImage) -> float:
    """Return the threshold that best separates values into two classes (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(variance)])


def find_digit(grey: FloatImage) -> FloatImage:
    """Crop the digit, also from a sheet of paper whose edges the picture shows.

    Args:
        grey: Grey levels 0–255, shape `(H, W)`.

    Returns:
        The digit's box, from 0 (paper) to 1 (full ink).

    Raises:
        InputError: If nothing stands out, or it is too small for a digit.
    """
    digit, (rows, columns) = crop_digit(extract_ink(grey))
    if not is_sheet(digit, grey.shape):
        return digit
    margin = max(2, max(digit.shape) // 30)  # the sheet's edge is blurred
    sheet = grey[rows, columns][margin:-margin, margin:-margin]
    with contextlib.suppress(InputError):  # a blank "sheet" is the digit itself, such as a bold 1
        return crop_digit(extract_ink(sheet))[0]
    return digit


def is_sheet(digit: FloatImage, picture_shape: tuple[int, ...]) -> bool:
    """Tell whether what was cropped is a sheet of paper rather than a digit."""
    if ndimage.binary_fill_holes(digit > INKED).mean() <= MIN_SHEET_FILL:
        return False
    return all(3 * side > whole for side, whole in zip(digit.shape, picture_shape, strict=True))


def crop_digit(ink: FloatImage) -> tuple[FloatImage, Box]:
    """Crop the digit, without dirt, noise and the dark edges of a photo.

    Args:
        ink: How far each pixel stands out from the paper, in grey levels.

    Returns:
        The digit's box, from 0 (paper) to 1 (full ink), and its position.

    Raises:
        InputError: If nothing stands out, or it is too small for a digit.
    """
    levels = measure_ink(ink)
    is_digit = select_digit(ink, levels)
    box = bounding_box(is_digit)
    height, width = is_digit[box].shape
    if max(height, width) < MIN_DIGIT_SIZE:
        raise InputError(f"it is too small: what stands out measures {width}×{height} pixels")
    around = ndimage.binary_dilation(is_digit, iterations=2)  # strokes fade out
    digit = np.where(around, ink - levels.paper, 0)[box]
    digit = np.where(digit < 3 * levels.noise, 0, digit / levels.contrast)
    cropped: FloatImage = np.clip(digit, 0, 1).astype(np.float32)
    return cropped, box


def measure_ink(ink: FloatImage) -> InkLevels:
    """Measure how clearly ink stands out from the paper.

    Raises:
        InputError: If nothing stands out.
    """
    blank = InputError("it is blank: nothing stands out from the paper")
    if ink.max() < MIN_CONTRAST:
        raise blank
    threshold = otsu_threshold(ink)
    strong = ink > threshold
    paper = ink[~strong]
    paper_level = float(np.median(paper))
    # 1.4826 times the median absolute deviation is the standard deviation of Gaussian noise
    noise = 1.4826 * float(np.median(np.abs(paper - paper_level)))
    contrast = float(np.percentile(ink[strong], 90)) - paper_level
    if contrast < max(MIN_CONTRAST, 5 * noise):  # 3.5 to 4.6 where there is noise only
        raise blank
    return InkLevels(threshold, paper_level, noise, contrast)


def select_digit(ink: FloatImage, levels: InkLevels) -> NDArray[np.bool_]:
    """Select the connected parts of the ink that belong to the digit.

    Excluded are parts at the border if there is enough ink elsewhere, ruled frames, and dirt.

    Returns:
        Which pixels are the digit's, shape `(H, W)`.
    """
    strong = ink > levels.threshold
    faint = ink > levels.paper + max(3 * levels.noise, 0.1 * levels.contrast)
    parts, count = ndimage.label(faint, np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    weights = ndimage.sum_labels(strong, parts, numbers)
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    inside = ~np.isin(numbers, border)
    if (weights * inside).max() > weights.max() / 4:
        weights = weights * inside  # a finger or the edge of the paper touches the border
    is_frame = np.array(
        [
            is_ruled_frame(parts[box] == number)
            for number, box in zip(numbers, ndimage.find_objects(parts), strict=True)
        ]
    )
    if (weights * ~is_frame).max() > 0:
        weights = weights * ~is_frame
    return np.isin(parts, numbers[weights > 0.03 * weights.max()])


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Return the smallest box that holds all true pixels, at least one."""
    box: Box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return box


def is_ruled_frame(part: NDArray[np.bool_]) -> bool:
    """Tell whether a part of the ink, given in its box, is a ruled rectangle around something."""
    height, width = part.shape
    if min(height, width) < 3 * MIN_DIGIT_SIZE or part.mean() > 0.5:
        return False
    edge = max(1, min(height, width) // 20)  # the frame may be slightly skewed
    sides = (part[:edge].any(0), part[-edge:].any(0), part[:, :edge].any(1), part[:, -edge:].any(1))
    return all(side.mean() > 0.9 for side in sides)


def fit_box(digit: FloatImage) -> FloatImage:
    """Scale a digit, from 0 (paper) to 1 (full ink), so that its longer side has 20 pixels."""
    if max(digit.shape) in (BOX_SIZE - 1, BOX_SIZE):  # resampling by one pixel would only blur
        return digit
    return scale(thicken(scale(digit, 10 * BOX_SIZE)), BOX_SIZE)


def thicken(digit: FloatImage) -> FloatImage:
    """Widen fine strokes, which would almost vanish in 28 × 28, to MNIST's typical width.

    Args:
        digit: Ten times as large as in 28 × 28, from 0 (paper) to 1 (full ink).
    """
    inked = digit > INKED
    # the mean distance to the edge of a stroke is a quarter of its width
    width = 4 * float(ndimage.distance_transform_edt(inked)[inked].mean() - 0.5) / 10
    if width >= FINE_STROKE:
        return digit
    radius = round(10 * (TYPICAL_STROKE - width) / 2)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = x * x + y * y <= radius * radius
    thick: FloatImage = ndimage.grey_dilation(np.pad(digit, radius), footprint=disc)
    return thick


def scale(digit: FloatImage, longer_side: int) -> FloatImage:
    """Scale so that the longer side has `longer_side` pixels, with antialiasing."""
    height, width = (max(1, round(side * longer_side / max(digit.shape))) for side in digit.shape)
    resized = Image.fromarray(digit).resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(resized)


def center(digit: FloatImage) -> NDArray[np.uint8]:
    """Centre a digit in 28 × 28 by its centre of mass.

    Args:
        digit: Any range from 0 (paper) on; its maximum becomes 255.

    Returns:
        Grey levels 0–255 of shape `(28, 28)`.
    """
    digit = digit / digit.max()
    pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    top, left = (
        # to a hundredth first: rounding errors must not move a symmetric digit
        int(np.clip(np.rint(np.round(IMAGE_SIZE / 2 - mass, 2)), 0, IMAGE_SIZE - side))
        for mass, side in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    height, width = digit.shape
    pixels[top : top + height, left : left + width] = digit
    return np.rint(255 * pixels).astype(np.uint8)


def out_of_distribution(
    pixels: Tensor, confidence: float, like_mnist: bool = True, novel: bool = False
) -> str:
    """Say why an image is unlike the training data, so that its prediction may be wrong.

    Args:
        pixels: The network's input, `uint8` of shape `(28, 28)`, ink 255 on 0.
        confidence: Probability of the predicted class.
        like_mnist: Whether the training data are digits in MNIST's form. Of other data only the
            confidence tells, and what the network makes of it.
        novel: What a `NoveltyDetector` says of the image.

    Returns:
        The reasons, separated by commas; "" if there are none.

    Example:
        >>> pixels = torch.zeros(28, 28, dtype=torch.uint8)
        >>> pixels[4:24, 4:20] = 255
        >>> out_of_distribution(pixels, 0.99)
        'thicker than any MNIST digit'
    """
    reasons: list[Any]
    if not like_mnist:
        reasons = [
            novel and "looks like none of the classes",
            confidence < MIN_CONFIDENCE and "unsure",
        ]
        return ", ".join(filter(None, reasons))
    image = pixels.numpy()
    ink = float(pixels.sum()) / 255
    rows, columns = bounding_box(image > 0)
    aspect = float(columns.stop - columns.start) / float(rows.stop - rows.start)
    reasons = [
        novel and "looks like no digit",
        confidence < MIN_CONFIDENCE and "unsure",
        ink < INK_RANGE[0] and "thinner than any MNIST digit",
        ink > INK_RANGE[1] and "thicker than any MNIST digit",
        has_parts_side_by_side(image) and "more than one digit, perhaps",
        not ASPECT_RANGE[0] <= aspect <= ASPECT_RANGE[1]
        and "narrower or wider than any MNIST digit",
    ]
    return ", ".join(filter(None, reasons))


def has_parts_side_by_side(image: NDArray[np.uint8]) -> bool:
    """Tell whether large parts of the ink stand side by side with a gap between them.

    None of 12,000 training images of MNIST does.
    """
    parts, count = ndimage.label(image > 63, np.ones((3, 3)))
    weights = ndimage.sum_labels(image, parts, range(1, count + 1))
    spans = sorted(
        (columns.start, columns.stop)
        for (_, columns), weight in zip(ndimage.find_objects(parts), weights, strict=True)
        if weight > weights.max() / 4
    )
    return any(left[1] < right[0] for left, right in pairwise(spans))
