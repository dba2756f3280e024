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


class TextEvidence:
    """What a text shows about its encoding. It is added up part by part, so that a large file need not fit in memory.

    A byte order mark tells the encoding. Without one, a text is UTF-8 if it has characters beyond ASCII that are valid
    UTF-8. Otherwise it is the encoding of the schema contract, or cp1252 (which contains the letters of Latin-1) if
    that gives plausible text.
    """

    def __init__(self) -> None:
        self.byte_order_mark = b""
        self._marked = ""
        self._is_empty, self._is_ascii, self._has_nul = True, True, False
        self._has_marks = self._has_characters = False
        self._sample: list[bytes] = []
        self._sample_size = 0

    def add(self, data: bytes) -> None:
        """Add the next part of the text. Each part but the last one ends with a line feed."""
        if self._is_empty:
            marks = ((mark, name) for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark))
            self.byte_order_mark, self._marked = next(marks, (b"", ""))
            self._has_nul, self._is_empty = b"\0" in data.partition(b"\n")[0], False
        if data.isascii() or self._marked:
            return
        self._is_ascii = False
        text = decode_as(data, "utf-8")
        self._has_marks |= text.has_marks
        self._has_characters |= not text.has_marks or not MARK.sub(b"", text.data).isascii()
        for line in data.splitlines():
            if self._sample_size > _SAMPLE_BYTES:
                break
            if not line.isascii():
                self._sample.append(line)
                self._sample_size += len(line)

    def encoding(self, declared: str | None = None, allowed: Sequence[str] = ()) -> str:
        """Return the encoding of the text.

        Args:
            declared: Encoding in the YAML, if there is one.
            allowed: Encodings of the schema contract, if there is one.

        Raises:
            UnreadableFileError: The text has another encoding than declared, or its encoding cannot be told.
        """
        if declared and self._marked and not declared.replace("_", "-").startswith(self._marked):
            raise UnreadableFileError(
                f"the file starts with the byte order mark of {self._marked.upper()}, but source.encoding is "
                f"{declared}; change source.encoding, or land the file again"
            )
        if declared or self._marked:
            return declared or self._marked
        if self._is_ascii:
            return next((each for each in allowed if not each.startswith(("utf-16", "utf-32"))), "utf-8")
        if not self._has_marks or self._has_characters:
            return "utf-8"
        if allowed:
            return next((each for each in allowed if not each.startswith("utf")), "utf-8")
        return "utf-8" if self._has_nul else _recognize(self._sample)


def decode(data: bytes, declared: str | None = None, allowed: Sequence[str] = ()) -> DecodedText:
    """Return a text file in UTF-8, without its byte order mark; see `TextEvidence`.

    Args:
        data: Content of the file.
        declared: Encoding in the YAML, if there is one.
        allowed: Encodings of the schema contract, if there is one.

    Raises:
        UnreadableFileError: The text has another encoding than declared, or its encoding cannot be told.
    """
    evidence = TextEvidence()
    evidence.add(data)
    return decode_as(without_mark(data, evidence.byte_order_mark), evidence.encoding(declared, allowed))


def without_mark(data: bytes, mark: bytes) -> bytes:
    """Return a text without the byte order mark of UTF-8. Python removes the others."""
    return data[len(mark) :] if mark == codecs.BOM_UTF8 else data


def keeps_lines(encoding: str) -> bool:
    """Return whether a text of an encoding can be decoded line by line: UTF-8, and one byte for each character.

    >>> keeps_lines("utf-8"), keeps_lines("cp1252"), keeps_lines("utf-16-le"), keeps_lines("shift_jis")
    (True, True, False, False)
    """
    name = codecs.lookup(encoding).name
    if name.startswith(("utf", "iso2022")):  # iso2022 switches between sets of characters
        return name == "utf-8"
    ascii_bytes, others = bytes(range(128)), bytes(range(128, 256))
    return ascii_bytes.decode(encoding, "replace") == ascii_bytes.decode() and all(
        len(bytes([each, each]).decode(encoding, "replace")) == 2 for each in others
    )


def decode_as(data: bytes, encoding: str) -> DecodedText:
    """Return a text in an encoding as UTF-8, with a `MARK` for each byte that the encoding does not know.

    Raises:
        UnreadableFileError: The text is cut short, in an encoding of several bytes for each character.
    """
    if encoding == "utf-8" and data.isascii():
        return DecodedText(data, encoding)
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


def _recognize(sample: Sequence[bytes]) -> str:
    """Return cp1252 if lines beyond ASCII are plausible in it; it is the only encoding that short texts show."""
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
