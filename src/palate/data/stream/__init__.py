"""The one way from a data source to rows."""

from palate.data.stream.draw import Draw, Span, drawn
from palate.data.stream.grouping import Group, OpenGroup, Row
from palate.data.stream.parse import Chunk, NotDrawn, RowParser, parse_record, parsed
from palate.data.stream.read import ReadResult, read_source, unique_ids
from palate.data.stream.stream import RowStream, reader_of

__all__ = [
    "Chunk",
    "Draw",
    "Group",
    "NotDrawn",
    "OpenGroup",
    "ReadResult",
    "Row",
    "RowParser",
    "RowStream",
    "Span",
    "drawn",
    "parse_record",
    "parsed",
    "read_source",
    "reader_of",
    "unique_ids",
]
