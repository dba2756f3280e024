"""Projects with the dataset `orders` that integration tests share."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from ae_pipeline.orchestration.sensors import rebuild_requests
from benchmarks.cloud_stores import STORES, StoreServer
from benchmarks.stores import postgres_server
from tests.support.missing import skip_unless_ci
from tests.support.shop import DAYS, Shop, make_shop, prepared_shop, published_shop, reject_every_version


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a running PostgreSQL server with a password."""
    try:
        with postgres_server("s3cr/t@1", "-c timezone=America/New_York") as url:
            yield url.render_as_string(hide_password=False)
    except FileNotFoundError as error:
        skip_unless_ci(str(error))


@pytest.fixture(scope="session", params=list(STORES))
def store_server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    """A running object store with the API of a provider."""
    try:
        with STORES[request.param]() as server:
            yield server
    except FileNotFoundError as error:
        skip_unless_ci(str(error))


@pytest.fixture
def store(store_server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty bucket. The environment has the credentials for it."""
    for name, value in store_server.variables.items():
        monkeypatch.setenv(name, value)
    return store_server.make(f"latents-{secrets.token_hex(4)}")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A project without data."""
    yield from make_shop(tmp_path)


@pytest.fixture
def serving_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project whose days, except the last, are published under version 1."""
    yield from published_shop(tmp_path_factory, days=DAYS[:-1])


@pytest.fixture(scope="module")
def complete_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project whose days are all published under version 1; tests must not change it."""
    for shop in make_shop(tmp_path_factory.mktemp("complete")):
        shop.publish_first_version()
        yield shop


def train_again(shop: Shop) -> None:
    """Train a second version and publish every day under it."""
    assert shop.run("train").success
    assert shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[0]} to {DAYS[-2]}"]
    assert shop.champion.version == 2


@pytest.fixture
def twice_trained_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project whose days, except the last, are published under version 2; version 1 served before."""
    yield from published_shop(tmp_path_factory, days=DAYS[:-1], then=train_again)


def train_a_rejected_version(shop: Shop) -> None:
    """Ingest all days but the last two, and train a first version that the gate rejects."""
    for day in DAYS[:-2]:
        shop.land(day)
    assert shop.run("ingest", DAYS[0], DAYS[-3]).success
    with pytest.MonkeyPatch.context() as monkeypatch:
        reject_every_version(monkeypatch)
        assert not shop.run("train").success


@pytest.fixture
def rejected_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project whose only version was rejected; its last two days have not landed."""
    yield from prepared_shop(tmp_path_factory, "rejected", train_a_rejected_version)
