"""The public formats, recognised from their columns; `palate.data.stream` reads rows by them."""

from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.registry import readers

__all__ = ["Context", "Reader", "RowError", "readers"]
