"""Images in one folder per class, opened when they are first needed: there may be a hundred thousand of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from tilelab.errors import InputError
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.spec import Normalization
from tilelab.training.crops import CropSource
from tilelab.training.pairs import Plane, load_plane
from tilelab.training.sections import ImageFolders

_NOT_IMAGES = {".txt", ".md", ".json", ".csv", ".xml", ".yaml", ".yml", ".ini", ".db", ".html", ".pdf", ".py"}
_KEPT_PIXELS = 2**27
_OPENED = 500
"""Images of a class that are opened before training starts, spread evenly."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A file and the index of its class."""

    path: Path
    label: int


def find_classes(pattern: str, root: Path, wanted: Sequence[str] = ()) -> dict[str, Path]:
    """The folder of each class, in alphabetical order or in that of `wanted`.

    Args:
        pattern: a folder of folders, or a path in which one ``*`` stands for the class (``*/train/images``).
        root: what it is relative to.
        wanted: names of the classes; empty takes all.

    Raises:
        InputError: a folder is missing, or there are fewer than two.
    """
    first, star, rest = pattern.partition("*")
    if not star:
        first, rest = f"{pattern}/", ""
    if "*" in rest or (first and not first.endswith("/")) or (rest and not rest.startswith("/")):
        raise InputError(f"{pattern!r} must name a folder, or stand for several by one * between slashes")
    base = root / first
    if not base.is_dir():
        raise InputError(f"no such folder: {base}")
    inner = rest.strip("/")
    found = {path.name: path / inner for path in _list(base) if not path.name.startswith(".")}
    found = {name: path for name, path in found.items() if path.is_dir()}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"no folder {base / missing[0] / inner} for the class {missing[0]!r}")
    if wanted:
        found = {name: found[name] for name in wanted}
    if len(found) < 2:
        raise InputError(f"{base} holds {len(found)} folders of images: two classes are the least")
    return found


def _list(folder: Path) -> list[Path]:
    """What is in a folder, in the order of the names.

    Raises:
        InputError: it is missing, or cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


def list_images(folders: dict[str, Path]) -> list[Labelled]:
    """All images of all classes, class by class, in the order of their names.

    Raises:
        InputError: a class has none.
    """
    images: list[Labelled] = []
    for label, folder in enumerate(folders.values()):
        paths = [
            path for path in _list(folder) if not path.name.startswith(".") and path.suffix.lower() not in _NOT_IMAGES
        ]
        if not paths:
            raise InputError(f"{folder} holds no image")
        for path in paths[:: -(-len(paths) // _OPENED)]:
            open_image(path).close()  # what is no image at all is better found now than in an hour
        images += [Labelled(path, label) for path in paths]
    return images


def split_images(
    data: ImageFolders, root: Path, wanted: Sequence[str], seed: int
) -> tuple[list[str], list[Labelled], list[Labelled]]:
    """Names of the classes, the images to train on, and those to validate on.

    Raises:
        InputError: a folder is missing or empty, both sets have not the same classes, or a class has a single image of
            which none can be held back.
    """
    folders = find_classes(data.train, root, wanted)
    names, images = list(folders), list_images(folders)
    if data.validation:
        return names, images, list_images(find_classes(data.validation, root, names))
    rng = np.random.default_rng(seed)
    train, validation = [], []
    for label, name in enumerate(names):
        own = [image for image in images if image.label == label]
        if len(own) < 2:
            raise InputError(f"{folders[name]} holds one image, of which none can be held back: name data.validation")
        kept = set(rng.permutation(len(own))[: max(1, round(data.held_back * len(own)))].tolist())
        validation += [image for i, image in enumerate(own) if i in kept]
        train += [image for i, image in enumerate(own) if i not in kept]
    return names, train, validation


def find_unlabelled(data: ImageFolders, root: Path, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """All images in a folder and the folders in it, or in those that a pattern with ``*`` names; and those held back.

    Raises:
        InputError: no such folder, or fewer than two images.
    """
    train = _images_below(data.train, root)
    if data.validation:
        return train, _images_below(data.validation, root)
    if len(train) < 2:
        raise InputError(f"{root / data.train} holds one image, of which none can be held back: name data.validation")
    kept = np.random.default_rng(seed).permutation(len(train))[: max(1, round(data.held_back * len(train)))]
    held = set(kept.tolist())
    return [image for i, image in enumerate(train) if i not in held], [train[i] for i in sorted(held)]


def _images_below(pattern: str, root: Path) -> list[Labelled]:
    folders = sorted(root.glob(pattern)) if "*" in pattern else [root / pattern]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise InputError(f"no such folder: {root / pattern}")
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    paths = [path for path in paths if not path.name.startswith(".") and path.suffix.lower() not in _NOT_IMAGES]
    if not paths:
        raise InputError(f"{root / pattern} holds no image")
    for path in paths[:: -(-len(paths) // _OPENED)]:
        open_image(path).close()
    return [Labelled(path, 0) for path in paths]


class Library:
    """Images by index, small ones kept in memory as far as there is room; safe among threads.

    Args:
        images: the files.
        normalization: as in use.
        channels: input channels of the network.
    """

    def __init__(self, images: Sequence[Labelled], normalization: Normalization, channels: int):
        self.images = images
        self._normalization, self._channels = normalization, channels
        self._room = _KEPT_PIXELS
        self._kept: dict[int, CropSource] = {}
        self._lock = Lock()

    @contextmanager
    def open(self, index: int, which: float = 0.0) -> Iterator[CropSource]:
        """An image; of a stack, the plane at `which`, from 0 (the first) to less than 1.

        Raises:
            InputError: it cannot be read.
            ModelError: its channels or type do not suit.
        """
        kept = self._kept.get(index)
        if kept is not None:
            yield kept
            return
        with open_image(self.images[index].path, bar=None) as image:
            _, height, width = Volume(image).shape
            plane: Image = Plane(image, int(which * Volume(image).shape[0]))
            with self._lock:
                keep = plane.uri == image.uri and height * width <= self._room
                self._room -= height * width if keep else 0
            plane.stack = None  # its own statistics: those of a stack would be looked for with every crop
            if keep:
                plane = load_plane(plane)
            source = CropSource(Volume(plane), self._normalization, self._channels)
            if keep:
                self._kept[index] = source
            yield source


def open_some(images: Sequence[Labelled], most: int = 512) -> Iterator[Image]:
    """The first plane of at most so many images, spread evenly; each is closed when the next is asked for."""
    count = min(most, len(images))
    for i in range(count):
        with open_image(images[i * len(images) // count].path, bar=None) as image:
            yield Plane(image)
