"""Zip files of PyTorch: sizes, names and checksums are checked before anything is read into memory."""

from __future__ import annotations

import zipfile

from .limits import MAX_ARCHIVE_MEMBERS, MAX_INDEX_BYTES, MAX_INFLATED_BYTES
from .pickle_values import printable

_BLOCK = 1 << 20


def check_members(archive: zipfile.ZipFile, num_bytes: int, checksums: bool = True) -> None:
    """Check the members of an archive.

    Args:
        archive: the archive.
        num_bytes: size of the file.
        checksums: compare the checksums, for which every member is read once.

    Raises:
        ValueError: there are too many members, a name occurs twice, a tensor is compressed, or the members expand to
            more than the file plus `MAX_INFLATED_BYTES`.
        zipfile.BadZipFile: a checksum differs.
    """
    members = archive.infolist()
    if len(members) > MAX_ARCHIVE_MEMBERS:
        raise ValueError(f"{len(members):,} members, more than {MAX_ARCHIVE_MEMBERS:,}")
    names = {member.filename.casefold() for member in members}  # PyTorch finds members regardless of case
    if len(names) < len(members):
        raise ValueError("two members of the same name")
    for member in members:
        is_stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
        if "/data/" in member.filename and not is_stored:
            raise ValueError(f"the tensor {printable(member.filename)} is compressed, which PyTorch never does")
    stored, expanded = (sum(getattr(m, name) for m in members) for name in ("compress_size", "file_size"))
    if stored > num_bytes or expanded > num_bytes + MAX_INFLATED_BYTES:
        raise ValueError(f"members of {expanded:,} bytes in a file of {num_bytes:,}")
    for member in members if checksums else ():
        with archive.open(member) as stream:
            while stream.read(_BLOCK):
                pass


def read_index(archive: zipfile.ZipFile) -> tuple[bytes, str]:
    """Return the pickle that says where the tensors are, and the folder of the archive.

    Raises:
        ValueError: the archive does not have exactly one, or it is too large.
    """
    names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise ValueError(f"{len(names)} files named data.pkl, expected one")
    size = archive.getinfo(names[0]).file_size
    if size > MAX_INDEX_BYTES:
        raise ValueError(f"an index of {size:,} bytes, more than {MAX_INDEX_BYTES:,}")
    return archive.read(names[0]), names[0].removesuffix("data.pkl")
