"""Bundles of registered versions: verified against the digests that the registry has of them."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from ae_pipeline.common.errors import BundleError, StorageError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.registry.digests import DIGEST_TAG, digest_tags
from ae_pipeline.registry.names import GATE_TAG

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker
    from ae_pipeline.registry.versions import TrackedVersion

logger = logging.getLogger(__name__)


def load_bundle(tracker: "Tracker", version: "TrackedVersion", device: str | None = None) -> ModelBundle:
    """Load the bundle of a registered version, if its files are those that were registered.

    The digests of a version that was registered before there were digests are recorded now.

    Args:
        tracker: The model store.
        version: A registered version.
        device: Device to score on; see `ModelBundle.load`.

    Raises:
        BundleError: A byte of the bundle has changed, or the bundle cannot be read.
        DeviceError: The device failed, or has too little memory.
        StorageError: The bundle is gone.
    """
    folder = verified_folder(tracker, version)
    with _with_remedy(tracker, version):
        bundle = ModelBundle.load(folder, device)
        if not _registered(tracker, version):
            tags = digest_tags(folder)
            tracker.tag_version(version.dataset, version.version, tags)
            logger.info(
                f"version {version.version} was registered without digests; those of its bundle are recorded now"
            )
    return bundle


def verified_folder(tracker: "Tracker", version: "TrackedVersion") -> Path:
    """Return the folder of the bundle of a version, after a comparison of its files with the registered digests.

    A file is whole if one of its registered digests matches: they are tags of the version and of its run, so that a
    damaged tag refuses no whole file. A damaged download from a tracking server is downloaded again.

    Raises:
        BundleError: A byte of the bundle has changed, or a file is missing.
        StorageError: The bundle is gone.
    """
    with _with_remedy(tracker, version):
        folder = tracker.bundle_folder(version)
        registered = _registered(tracker, version)
        try:
            _compare(folder, registered, version)
        except BundleError:
            if not tracker.is_remote:
                raise
            logger.warning(f"the downloaded bundle in {folder} is damaged; it is downloaded again")
            shutil.rmtree(folder)
            _compare(folder := tracker.bundle_folder(version), registered, version)
    return folder


def _compare(folder: Path, registered: Mapping[str, set[str]], version: "TrackedVersion") -> None:
    for tag, digest in digest_tags(folder).items():
        if registered.get(tag) and digest not in registered[tag]:
            raise BundleError(
                f"{folder / tag.removeprefix(DIGEST_TAG)} of version {version.version} of {version.dataset!r} is not "
                f"the file that was registered: its SHA-256 is {digest[:12]}…, not {min(registered[tag])[:12]}…. It "
                "is not used"
            )


def _registered(tracker: "Tracker", version: "TrackedVersion") -> dict[str, set[str]]:
    """Return the registered digests of a version, by tag: those of the version and those of its run."""
    try:
        run = dict(tracker.client.get_run(version.run_id).data.tags)
    except MlflowException:  # the version was registered without a run of this store
        run = {}
    digests: dict[str, set[str]] = {}
    for tags in (version.tags, run):
        for tag, digest in tags.items():
            if tag.startswith(DIGEST_TAG):
                digests.setdefault(tag, set()).add(digest)
    return digests


@contextmanager
def _with_remedy(tracker: "Tracker", version: "TrackedVersion") -> Iterator[None]:
    """Add the commands that help to an error about a bundle."""
    try:
        yield
    except (BundleError, StorageError) as error:
        others = [
            other.version
            for other in tracker.versions(version.dataset)
            if other.version != version.version and other.tags.get(GATE_TAG) == "passed"
        ]
        name = version.dataset
        back = f", or `ae-pipeline rollback {name} {max(others)} --why …` lets another one serve" if others else ""
        remedy = f"`ae-pipeline run {name}` trains a new version{back}"
        raise type(error)(str(error) if remedy in str(error) else f"{error}: {remedy}") from error
