"""What can be wrong with a row, by name: the same words in `detris data check` and when training meets one."""

from __future__ import annotations

# A row of one of these kinds is never trained on.
BAD_KINDS = (
    "image_missing",
    "image_damaged",
    "mask_empty",  # no foreground, where the row is not marked as without target
    "mask_out_of_frame",  # the outline lies wholly beside the image
    "mask_malformed",  # no polygon or RLE, or made for another image size
    "row_malformed",  # a field is missing, blank or of another type; files do not belong together
    "duplicate_id",
)

KIND_NOTE = "kind of bad row: "


class BadRowError(ValueError):
    """A row that cannot be trained on; the message names the row and the file, in one line.

    Args:
        message: what came, what was needed, what to do.
        kind: one of `BAD_KINDS`.
    """

    def __init__(self, message: str, kind: str = "row_malformed") -> None:
        # A file's name or a field may hold anything; line breaks are PyTorch's, which adds a worker's traceback.
        shown = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(shown))
        self.kind = kind
        # Printed behind the message (from Python 3.11 on): so the kind stands in a worker's traceback too.
        self.__notes__ = [f"{KIND_NOTE}{kind}"]


class MissingImageError(BadRowError, FileNotFoundError):
    """The file of a row's image is not there."""

    def __init__(self, message: str, kind: str = "image_missing") -> None:
        super().__init__(message, kind)


class BadRows(list[BadRowError]):
    """Collects bad rows instead of stopping at the first: every reader takes one as `bad_rows`.

    A reader that gets None raises the first bad row; one that gets a `BadRows` leaves such rows out and appends what
    is wrong with each.
    """

    def counts(self) -> dict[str, int]:
        """How many of each kind that occurred, in the order of `BAD_KINDS`."""
        found = [error.kind for error in self]
        return {kind: found.count(kind) for kind in BAD_KINDS if kind in found}


def reject(error: BadRowError, bad_rows: BadRows | None) -> None:
    """Raise a bad row, or note it where rows are being collected."""
    if bad_rows is None:
        raise error
    bad_rows.append(error)
