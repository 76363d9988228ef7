"""Make the JPEG files that the images scenario decodes, once, from a fixed seed; and decode them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from benchmarks.data import cache_root, made_at_once

if TYPE_CHECKING:
    from collections.abc import Iterable

NUM_IMAGES = 3_000
EDGE = 320
_SEED = 20_263
# Smooth noise of so many pixels, enlarged, compresses about as photographs do.
_NOISE_EDGE = 40
_QUALITY = 85


def image_folder() -> Path:
    """Return the folder of the files, making them when they are not there yet."""
    return made_at_once(cache_root() / f"jpeg-{NUM_IMAGES}x{EDGE}-seed{_SEED}", _write_images)


def image_paths() -> list[str]:
    """Return the paths of the JPEG files."""
    return sorted(str(path) for path in image_folder().glob("*.jpg"))


def image_parquet() -> str:
    """Return the path of a Parquet file that has the bytes of all of them in one row group."""
    return str(image_folder() / "images.parquet")


def decode(sources: Iterable[Any]) -> np.ndarray[Any, Any]:
    """Decode images, of paths or of their bytes, to RGB: an array of shape (images, EDGE, EDGE, 3), of uint8."""
    from PIL import Image

    opened = (Image.open(io.BytesIO(one) if isinstance(one, bytes) else one) for one in sources)
    return np.stack([np.asarray(image.convert("RGB")) for image in opened])


def _write_images(folder: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(_SEED)
    encoded = []
    for index in track(range(NUM_IMAGES), "Making the images", console=Console(stderr=True)):
        noise = random.integers(0, 256, (_NOISE_EDGE, _NOISE_EDGE, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        path = folder / f"{index:05d}.jpg"
        image.save(path, quality=_QUALITY)
        encoded.append(path.read_bytes())
    pq.write_table(
        pa.table({"jpeg": pa.array(encoded, pa.binary())}), folder / "images.parquet", row_group_size=NUM_IMAGES
    )
