"""How often a JPEG says that its picture is drawn over: a file of megabytes can say it a hundred thousand times."""

from __future__ import annotations

MOST_SCANS = 128
"""Progressive files of cameras, sites and programs have about ten."""
_START, _SCAN = b"\xff\xd8\xff", b"\xff\xda"


def has_too_many_scans(data: bytes) -> bool:
    """Whether `data` is a JPEG that would be decoded for minutes or hours; nothing is decoded here.

    In the compressed data itself a scan's mark never stands: its first byte is escaped there.
    """
    return data.startswith(_START) and data.count(_SCAN) > MOST_SCANS
