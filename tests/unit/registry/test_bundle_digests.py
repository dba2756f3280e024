"""Bundles of registered versions are the files that were registered."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ae_pipeline.common.errors import BundleError, StorageError
from ae_pipeline.detector.bundle_files import MANIFEST, WEIGHTS
from ae_pipeline.registry.bundles import load_bundle
from ae_pipeline.registry.digests import DIGEST_TAG
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from tests.support.model_store import make_model_store
from tests.support.sensors import Fitted


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    """A store of its own."""
    return Tracker(make_model_store(tmp_path / "mlruns"))


@pytest.fixture
def version(tracker: Tracker, fitted: Fitted) -> TrackedVersion:
    """A registered version."""
    with tracker.training("guarded", "a training", {}) as run:
        return run.register(fitted.bundle)


def flip(path: Path, index: int) -> None:
    """Flip a bit of a file and keep its modification time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns + 1, stat.st_mtime_ns + 1))


@pytest.mark.slow
class TestDigests:
    @pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
    @pytest.mark.parametrize("index", [30, -30])
    def test_a_flipped_byte_is_never_loaded(
        self, tracker: Tracker, version: TrackedVersion, name: str, index: int
    ) -> None:
        flip(tracker.bundle_folder(version) / name, index)
        with pytest.raises(
            BundleError, match=rf"{name} of version 1 .* is not the file that was registered.*`ae-pipel"
        ):
            load_bundle(tracker, version)

    def test_the_version_that_was_registered_is_loaded(
        self, tracker: Tracker, version: TrackedVersion, fitted: Fitted
    ) -> None:
        assert load_bundle(tracker, version).fingerprint == fitted.bundle.fingerprint
        assert sorted(version.tags) == [f"{DIGEST_TAG}{MANIFEST}", f"{DIGEST_TAG}{WEIGHTS}"]

    def test_a_damaged_tag_refuses_no_whole_bundle(
        self, tracker: Tracker, version: TrackedVersion, fitted: Fitted
    ) -> None:
        tracker.tag_version("guarded", version.version, {f"{DIGEST_TAG}{WEIGHTS}": "0" * 64})
        loaded = load_bundle(tracker, tracker.version_number("guarded", version.version))
        assert loaded.fingerprint == fitted.bundle.fingerprint

    def test_digests_of_an_earlier_version_are_recorded(self, tracker: Tracker, version: TrackedVersion) -> None:
        for name in version.tags:
            tracker.client.delete_model_version_tag("guarded", str(version.version), name)
            tracker.client.delete_tag(version.run_id, name)
        load_bundle(tracker, tracker.version_number("guarded", version.version))
        assert tracker.version_number("guarded", version.version).tags == version.tags


@pytest.mark.slow
class TestDatabase:
    def test_a_missing_database_is_restored_from_its_backup(self, tracker: Tracker, version: TrackedVersion) -> None:
        tracker.set_alias("guarded", CHAMPION, version.version)
        assert tracker.database is not None
        tracker.database.unlink()
        restored = Tracker(tracker.root).version("guarded", CHAMPION)
        assert restored is not None
        assert restored.run_id == version.run_id

    @pytest.mark.parametrize("content", [b"x" * 9000, None])
    def test_a_damaged_database_names_the_command(
        self, tracker: Tracker, version: TrackedVersion, content: bytes | None
    ) -> None:
        assert tracker.database is not None
        tracker.database.write_bytes(content or tracker.database.read_bytes()[:40_000])
        with pytest.raises(StorageError, match=r"mlflow\.db, is damaged .*`ae-pipeline doctor --repair`"):
            Tracker(tracker.root).open()

    def test_the_backup_has_the_last_decision(self, tracker: Tracker, version: TrackedVersion) -> None:
        tracker.set_alias("guarded", CHAMPION, version.version)
        assert tracker.backup is not None
        with closing(sqlite3.connect(tracker.backup)) as connection:
            aliases = connection.execute(
                "SELECT alias, version FROM registered_model_aliases ORDER BY alias"
            ).fetchall()
        assert aliases == [("challenger", 1), ("champion", 1)]
