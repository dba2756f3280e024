"""An object store in memory, and working copies of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.storage import object_store
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.working_copy import WorkingCopy

ADDRESS = "s3://bucket/data"

ENTRY = LandedFile(size=1, modified_ns=1, sha256="a", landed_ns=1, contract="c", staged="s")


@dataclass
class Bucket:
    """An object store in memory.

    Attributes:
        client: Its client.
    """

    client: MemoryStore

    @property
    def names(self) -> set[str]:
        """Names of its objects, without those of the state."""
        return {each["path"] for page in self.client.list() for each in page if not each["path"].startswith("state/")}

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return bytes(self.client.get(name).bytes())

    def write(self, name: str, data: bytes) -> None:
        """Write an object, as another program does."""
        self.client.put(name, data)


@dataclass
class Host:
    """A machine with a working copy of the dataset `orders`."""

    paths: DatasetPaths
    copy: WorkingCopy

    def write(self, name: str, text: str) -> Path:
        """Write a file of the working copy."""
        path = self.paths.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    @property
    def files(self) -> dict[str, str]:
        """Text of each file of the working copy, but its records."""
        root = self.paths.root
        files = (path for path in root.rglob("*") if path.is_file() and ".store" not in path.parts)
        return {path.relative_to(root).as_posix(): path.read_text() for path in files if path.suffix != ".lock"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty object store at `ADDRESS`."""
    client = MemoryStore()
    monkeypatch.setattr(object_store, "_open", lambda *_: client)
    return Bucket(client)


@pytest.fixture
def host(bucket: Bucket, tmp_path: Path) -> Callable[[str], Host]:
    """Function that returns a machine by its name."""

    def make(name: str) -> Host:
        paths = DatasetPaths(tmp_path / name, "orders", f"{ADDRESS}/latents", store=ADDRESS)
        return Host(paths, WorkingCopy(paths))

    return make
