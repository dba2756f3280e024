"""Decode text files: byte order marks, declared encodings, and the recognition of cp1252."""

import codecs
import re
from collections.abc import Sequence
from typing import NamedTuple

from charset_normalizer import from_bytes

from ae_pipeline.ingestion.rows import UnreadableFileError

MARK = re.compile(rb"\xed[\xb2\xb3][\x80-\xbf]")
"""What stands in a decoded text for a byte that the encoding does not know. UTF-8 has no such bytes."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 1 << 16


class DecodedText(NamedTuple):
    """A text in UTF-8.

    Attributes:
        data: The text; each byte that could not be decoded is a `MARK`.
        encoding: Encoding of the file.
        has_marks: Whether there are such bytes.
    """

    data: bytes
    encoding: str
    has_marks: bool = False


def decode(data: bytes, declared: str | None = None, allowed: Sequence[str] = ()) -> DecodedText:
    """Return a text file in UTF-8, without its byte order mark.

    A byte order mark tells the encoding. Without one, a text is UTF-8 if it has characters beyond ASCII that are valid
    UTF-8. Otherwise it is the encoding of the schema contract, or cp1252 (which contains the letters of Latin-1) if
    that gives plausible text.

    Args:
        data: Content of the file.
        declared: Encoding in the YAML, if there is one.
        allowed: Encodings of the schema contract, if there is one.

    Raises:
        UnreadableFileError: The text has another encoding than declared, or its encoding cannot be told.
    """
    mark, encoding = next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), (b"", ""))
    if declared and encoding and not declared.replace("_", "-").startswith(encoding):
        raise UnreadableFileError(
            f"the file starts with the byte order mark of {encoding.upper()}, but source.encoding is {declared}; "
            "change source.encoding, or land the file again"
        )
    if mark:
        content = data[len(mark) :] if encoding == "utf-8" else data
        return _decoded(content, declared or encoding)
    if declared:
        return _decoded(data, declared)
    if data.isascii():
        same = (each for each in allowed if not each.startswith(("utf-16", "utf-32")))
        return DecodedText(data, next(same, "utf-8"))
    text = _decoded(data, "utf-8")
    if not text.has_marks or not MARK.sub(b"", text.data).isascii():
        return text
    if allowed:
        other = next((each for each in allowed if not each.startswith("utf")), None)
        return _decoded(data, other) if other else text
    if b"\0" in data.partition(b"\n")[0]:
        return text
    return _decoded(data, _recognize(data))


def _decoded(data: bytes, encoding: str) -> DecodedText:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            marked = data.decode(encoding, errors="surrogateescape")
        except UnicodeDecodeError:
            raise UnreadableFileError(
                f"the text is not {encoding.upper()} throughout ({error.reason} at byte {error.start:,}); it may be "
                "truncated: land it again"
            ) from error
        return DecodedText(marked.encode("utf-8", errors="surrogatepass"), encoding, has_marks=True)
    return DecodedText(data if encoding == "utf-8" else text.encode(), encoding)


def _recognize(data: bytes) -> str:
    """Return cp1252 if the lines beyond ASCII are plausible in it; it is the only encoding that short texts show."""
    lines = (line for line in data.splitlines() if not line.isascii())
    sample, size = [], 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if size > _SAMPLE_BYTES:
            break
    text = b"\n".join(sample)[: 2 * _SAMPLE_BYTES]
    if from_bytes(text, cp_isolation=["cp1252"]).best():
        return "cp1252"
    guess = from_bytes(text).best()
    raise UnreadableFileError(
        f"the text is not UTF-8 and has no byte order mark{f', perhaps it is {guess.encoding}' if guess else ''}; land "
        "it as UTF-8, or set source.encoding in the YAML"
    )


def printable_text(data: bytes) -> str:
    r"""Return a part of a decoded text. Bytes that could not be decoded are shown as `\xe9`."""
    text = data.decode("utf-8", errors="surrogatepass")
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")


def printable_record(data: bytes, max_bytes: int) -> str:
    r"""Return a record of a decoded text without its line break, or only its size if it is too long to be shown.

    >>> printable_record(b"7,Oslo\n", 100), printable_record(b"7,Oslo", 5)
    ('7,Oslo', '6 bytes')
    """
    return f"{len(data):,} bytes" if len(data) > max_bytes else printable_text(data).rstrip("\r\n")
