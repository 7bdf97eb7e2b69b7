"""Perceptual hash: find near-duplicates, such as an image and its resized, recompressed or mirrored copy.

The hash is the DCT hash of Christoph Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions"
(2010), in the form of the library imagehash: which of the 8x8 lowest frequencies of the gray image exceed their
median. Two images are near-duplicates if their hashes are similar and their 8x8 thumbnails are correlated. The second
condition removes most of the pairs whose hashes are similar by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

HASH_BITS = 64
_SIDE = 8  # of the block of frequencies, and of the thumbnail
_GRAY_SIDE = 32  # of the image that is transformed
_MIN_CORRELATION = 0.85  # of two thumbnails
_BLOCK = 1024  # hashes that are compared with all others at once


class ImageHash(NamedTuple):
    """Hash of an image; all arrays are float32 of shape (64,).

    Args:
        bits: 1 or -1.
        mirrored_bits: the bits of the mirrored image.
        thumbnail: 8x8 gray values of mean 0 and norm 1; all 0 for an image of one color, which resembles no other.
    """

    bits: np.ndarray
    mirrored_bits: np.ndarray
    thumbnail: np.ndarray


def hash_image(pixels: np.ndarray) -> ImageHash:
    """Return the hash of an image.

    Args:
        pixels: uint8 RGB (H, W, 3).
    """
    small = cv2.resize(pixels, (_GRAY_SIDE, _GRAY_SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    frequencies = cv2.dct(gray)[:_SIDE, :_SIDE]
    # Mirroring changes the sign of the odd horizontal frequencies.
    mirrored = frequencies * np.where(np.arange(_SIDE) % 2, -1, 1)
    thumbnail = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).ravel()
    thumbnail -= thumbnail.mean()
    norm = np.linalg.norm(thumbnail)
    # Differences of less than one gray level are noise.
    thumbnail = thumbnail / norm if norm > _SIDE else np.zeros_like(thumbnail)
    return ImageHash(_signs(frequencies), _signs(mirrored), thumbnail)


def group_near_duplicates(hashes: Sequence[ImageHash], max_distance: int) -> list[list[int]]:
    """Return the images in groups: near-duplicates of near-duplicates are in one group.

    Takes a few seconds for 20,000 images, and memory for 1024 x N distances.

    Args:
        hashes: hashes of N images.
        max_distance: maximum number of different bits of two near-duplicates.

    Returns:
        The numbers of the images of each group, in ascending order.
    """
    if not hashes:
        return []
    bits, mirrored_bits, thumbnails = (np.stack(arrays) for arrays in zip(*hashes, strict=True))
    mirrored_thumbnails = thumbnails.reshape(-1, _SIDE, _SIDE)[..., ::-1].reshape(-1, HASH_BITS)
    labels = np.arange(len(bits))  # equal for the images of a group
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        for other_bits, others in ((bits, thumbnails), (mirrored_bits, mirrored_thumbnails)):
            # The product of two hashes is the number of equal bits minus that of different ones.
            similar = np.triu(block @ other_bits[start:].T >= HASH_BITS - 2 * max_distance, 1)  # (block, N - start)
            for row in np.flatnonzero(similar.any(axis=1)):
                number = start + row
                found = start + np.flatnonzero(similar[row])
                found = found[labels[found] != labels[number]]
                found = found[others[found] @ thumbnails[number] >= _MIN_CORRELATION]
                for label in np.unique(labels[found]):
                    labels[labels == label] = labels[number]
    order = np.argsort(labels, kind="stable")
    return [group.tolist() for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)]


def _signs(frequencies: np.ndarray) -> np.ndarray:
    return np.where(frequencies > np.median(frequencies), 1, -1).astype(np.float32).ravel()
