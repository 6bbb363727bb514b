"""Where rows are kept: files, folders and hub data sets, as numbered records."""

from palate.data.containers.base import Record, Records, Rejection
from palate.data.containers.files import open_file
from palate.data.containers.open import open_records, source_name

__all__ = ["Record", "Records", "Rejection", "open_file", "open_records", "source_name"]
