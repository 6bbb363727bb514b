"""Rows from public formats: files, folders and hub data sets, recognised from their columns."""

from palate.data.containers import Rejection
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.read import ReadResult, read_source
from palate.data.readers.registry import readers

__all__ = ["Context", "ReadResult", "Reader", "Rejection", "RowError", "read_source", "readers"]
