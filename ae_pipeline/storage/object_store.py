"""An object store that holds the data of all hosts: conditional reads and writes, and errors with a remedy."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ae_pipeline.common.errors import ConfigError, StorageError, UnavailableError
from ae_pipeline.common.text import first_line
from ae_pipeline.storage.files import raise_os_error

if TYPE_CHECKING:
    from obstore import GetOptions, PutMode
    from obstore.store import ObjectStore as Client

REQUESTS_AT_ONCE = 16
"""Files that are copied at the same time."""

_TIMEOUTS = {False: (300, 30), True: (5, 9)}
"""Seconds of one request, and in which it is tried again: for content, and for what pages and sensors wait for."""

_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP"}
"""Variable that allows plain HTTP, by the scheme of an address."""

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT"),
}
"""Variables that name a server other than that of the provider. The last two are JSON with its address, or a file."""

_SETTINGS = {
    "s3": "AWS_ENDPOINT_URL",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT",
    "gs": "GOOGLE_SERVICE_ACCOUNT, GOOGLE_BASE_URL",
}
"""What a person should check, beside the address and the credentials."""

_SECOND = 1_000_000_000
"""Nanoseconds of a second."""


@dataclass(frozen=True)
class Content:
    """Content of an object.

    Attributes:
        data: Its bytes; None if they are those that the caller knows.
        e_tag: Version of the object.
    """

    data: bytes | None
    e_tag: str


@dataclass(frozen=True)
class ListedObject:
    """An object as a listing shows it.

    Attributes:
        name: Name below the folder that was listed.
        size: Size in bytes.
        modified_ns: Time of its last change, in ns since 1970. The digits below a second tell versions apart that were
            written within one second: they are a hash of the version.
        e_tag: Version of the object.
    """

    name: str
    size: int
    modified_ns: int
    e_tag: str = ""

    def is_version(self, size: int, modified_ns: int) -> bool:
        """Return whether the object is a version that was seen before.

        Args:
            size: Its size in bytes.
            modified_ns: Its time. A listing and a read can round the second differently, so only its digits count.
        """
        return (self.size, self.modified_ns % _SECOND) == (size, modified_ns % _SECOND)


class ObjectStore:
    """Objects below an address.

    Args:
        address: Address such as `s3://bucket/prefix`.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def read(self, name: str, known: str = "", *, is_content: bool = False) -> Content | None:
        """Return an object; None if there is none.

        Args:
            name: Name of the object.
            known: Version whose bytes the caller has.
            is_content: Whether it can be large. Otherwise, a store that does not answer is an error within 10 seconds.
        """
        from obstore.exceptions import NotModifiedError

        options: GetOptions = {"if_none_match": known.split(" ", maxsplit=1)[0]} if known else {}
        with self._translated():
            try:
                answer = self._client(is_quick=not is_content).get(name, options=options)
                return Content(bytes(answer.bytes()), _token(answer.meta))
            except NotModifiedError:
                return Content(None, known)
            except FileNotFoundError:
                return None

    def find(self, name: str) -> tuple[ListedObject, str] | None:
        """Return what a listing shows of an object, and its version for `replace`; None if there is none."""
        with self._translated():
            try:
                meta = self._client(is_quick=True).head(name)
            except FileNotFoundError:
                return None
            return _describe(name, meta), _token(meta)

    def replace(self, name: str, data: bytes | Path, e_tag: str) -> str | None:
        """Write an object if it still has a version, and return its new version; None if it has another one.

        Args:
            name: Name of the object.
            data: Its bytes, or a file with them, which is read into memory.
            e_tag: Version that it has; empty if it must not exist.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._translated():
            try:
                put = self._client().put(name, data, mode=_condition(e_tag), use_multipart=False)
                return _token(put)
            except (AlreadyExistsError, PreconditionError):
                pass
        # In Google Cloud, the same bytes that were written again have the same ETag, but another generation.
        known, _, generation = e_tag.partition(" ")
        current = self.find(name) if generation else None
        if current and current[1] != e_tag and current[1].split(" ", maxsplit=1)[0] == known:
            return self.replace(name, data, current[1])
        return None

    def write(self, name: str, source: Path | bytes | BinaryIO) -> None:
        """Write an object from bytes, a file, or an open file."""
        with self._translated():
            self._client().put(name, source)

    def download(self, name: str, target: Path) -> tuple[str, ListedObject] | None:
        """Write the bytes of an object to a file, and return their SHA-256 and the version; None if there is none."""
        digest = hashlib.sha256()
        with self._translated():
            try:
                answer = self._client().get(name)
            except FileNotFoundError:
                return None
            version = _describe(name, answer.meta)
        try:
            with target.open("wb") as file:
                for chunk in self._chunks(answer):
                    digest.update(chunk)
                    file.write(chunk)
        except OSError as error:
            raise_os_error(error, target)
        return digest.hexdigest(), version

    def list(self, folder: str) -> list[ListedObject]:
        """Return all objects below a folder, or below the address if it is empty, in pages of 1,000."""
        objects = list[ListedObject]()
        # The object `folder/`, by which some programs mark a folder, is listed without its slash, and has no name left.
        prefix = f"{folder}/" if folder else ""
        with self._translated():
            for page in self._client(is_quick=True).list(prefix):
                objects += [_describe(name, each) for each in page if (name := each["path"][len(prefix) :])]
        return objects

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects. One that does not exist is no error."""
        if paths := list(names):
            with self._translated():
                try:
                    self._client().delete(paths)
                except FileNotFoundError:  # of Azure and Google Cloud, which leave others undeleted
                    copy_all(self._remove_one, paths)

    def _remove_one(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._client().delete(name)

    def _client(self, *, is_quick: bool = False) -> "Client":
        if _first_process() != os.getpid():
            raise StorageError(
                f"this process was forked from one that uses {self.address}, so that the store would never answer; "
                "start it by `spawn`"
            )
        return _open(self.address, is_quick)

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        with self._translated():
            for chunk in answer.stream(min_chunk_size=1 << 20):
                yield bytes(chunk)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from obstore.exceptions import BaseError, InvalidPathError

        try:
            yield
        except InvalidPathError as error:
            raise StorageError(
                f"an object of {self.address} has a name that is no path ({first_line(error)}); give it another name, "
                "or delete it, and run again"
            ) from error
        except FileNotFoundError as error:
            raise StorageError(f"{self.address} lost an object while it was read: {first_line(error)}") from error
        except (BaseError, PermissionError) as error:
            raise UnavailableError(
                f"the object store of {self.address} does not answer as it should ({first_line(error)}); check "
                f"AE_PIPELINE_DATA, {settings_of(self.address)} and the credentials{http_remedy(self.address)}, and "
                "run again"
            ) from error


def _describe(name: str, meta: Any) -> ListedObject:
    # Azure has the quotes of an ETag in an answer, and not in a listing.
    e_tag = f'"{text}"' if (text := (meta["e_tag"] or "").strip('"')) else ""
    digits = int(hashlib.sha256(e_tag.encode()).hexdigest()[:12], 16) % _SECOND
    return ListedObject(name, meta["size"], int(meta["last_modified"].timestamp()) * _SECOND + digits, e_tag)


def _token(facts: Any) -> str:
    """Return the version of an object. Google Cloud compares a generation instead of the ETag, so both are kept."""
    return " ".join(filter(None, (facts["e_tag"], facts["version"])))


def _condition(token: str) -> "PutMode":
    """Return the condition of a write: the object has a version, or there is none."""
    if not token:
        return "create"
    e_tag, _, version = token.partition(" ")
    return {"e_tag": e_tag, "version": version} if version else {"e_tag": e_tag}


@cache
def _first_process() -> int:
    """Return the process that has used a store first. The threads of its connections do not survive a fork."""
    return os.getpid()


@cache
def _open(address: str, is_quick: bool) -> "Client":
    """Return the client of an address. Its connections are used again."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise ConfigError(
            f"AE_PIPELINE_DATA={address}: the package obstore is not installed; run `pip install 'ae-pipeline[s3]'`"
        ) from error
    timeout, retry_seconds = _TIMEOUTS[is_quick]
    return from_url(
        address,
        # These options replace those of the environment.
        client_options={"timeout": f"{timeout}s", "allow_http": _allows_http(address)},
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=retry_seconds)},
    )


def _scheme(address: str) -> str:
    return address.partition("://")[0]


def _allows_http(address: str) -> bool:
    """Return whether the environment allows plain HTTP, which is for a store in the same network."""
    return os.environ.get(_ALLOW_HTTP.get(_scheme(address), ""), "").lower() in {"true", "1"}


def settings_of(address: str) -> str:
    """Return the names of the variables, beside those of credentials, that tell how an address is reached."""
    return _SETTINGS.get(_scheme(address), "its endpoint")


def http_remedy(address: str) -> str:
    """Return the rest of a sentence about a store that is reached by plain HTTP, which is refused by default."""
    scheme = _scheme(address)
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS.get(scheme, ())]
    if scheme == "gs":
        with suppress(OSError, ValueError):  # of a key that is no text, or a path with a null byte
            endpoints.append(Path(endpoints[-1]).read_text(encoding="utf-8"))
    is_plain = any(re.match(r'(.*"gcs_base_url"\s*:\s*")?http://', each.lower(), re.DOTALL) for each in endpoints)
    return f", set {_ALLOW_HTTP[scheme]}=true for that plain HTTP" if is_plain and not _allows_http(address) else ""


def copy_all(work: Any, items: Iterable[Any]) -> list[Any]:
    """Return the results of a function that copies one item, for many at once."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(work, items))
