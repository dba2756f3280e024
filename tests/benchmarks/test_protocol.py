"""Planted anomalies of four kinds: their number, their order, and what is unusual about them."""

import numpy as np
import pytest
from scipy.stats import pearsonr

pytest.importorskip("pyod")

from benchmarks import protocol
from benchmarks.labelled_sets import Table
from benchmarks.report import Row

RNG = np.random.default_rng(0)
CLEAN = RNG.normal(size=(400, 1)) * [1.0, 10.0, 1.0] + RNG.normal(size=(400, 3)) * [0.1, 1.0, 0.1]
TABLE = Table("made", np.concatenate([CLEAN, np.full((7, 3), 99.0)]), np.arange(407) >= 400)


@pytest.mark.parametrize("kind", protocol.KINDS)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_planted_rows_have_their_share_among_the_clean_rows(kind: str, share: float) -> None:
    planted = protocol.plant(TABLE, kind, share, seed=1)
    assert planted.is_anomaly.mean() == pytest.approx(share, abs=0.002)
    clean = planted.values[~planted.is_anomaly]
    np.testing.assert_array_equal(np.sort(clean[:, 0]), np.sort(CLEAN[:, 0]))
    assert not planted.is_anomaly[:20].all()
    again = protocol.plant(TABLE, kind, share, seed=1)
    assert again.values.tobytes() == planted.values.tobytes()


def test_each_kind_is_unusual_in_its_way() -> None:
    rows = {kind: protocol.KINDS[kind](CLEAN, 500, np.random.default_rng(2)) for kind in protocol.KINDS}
    std = {kind: values.std(axis=0) / CLEAN.std(axis=0) for kind, values in rows.items()}
    correlation = {kind: pearsonr(values[:, 0], values[:, 2]).statistic for kind, values in rows.items()}
    assert correlation["dependency"] == pytest.approx(0, abs=0.15)
    assert set(rows["dependency"][:, 0]) <= set(CLEAN[:, 0])
    assert std["dependency"] == pytest.approx(np.ones(3), abs=0.1)
    assert (std["clustered"] > 3).all()
    assert correlation["clustered"] > 0.95
    assert (std["local"] > 1.1).all()
    assert correlation["local"] > 0.9
    margin = 0.1 * np.ptp(CLEAN, axis=0)
    assert (rows["global"].min(axis=0) >= CLEAN.min(axis=0) - margin).all()
    assert (rows["global"].max(axis=0) > CLEAN.max(axis=0)).all()
    assert correlation["global"] == pytest.approx(0, abs=0.15)


def test_cases_are_the_real_anomalies_and_each_kind_and_share() -> None:
    cases = list(protocol.cases(TABLE, 0, protocol.Size()))
    assert [case[:2] for case in cases] == [
        ("real", 7 / 407),
        *((kind, share) for kind in protocol.KINDS for share in protocol.SHARES),
    ]


def test_one_share_plants_each_share_in_turn() -> None:
    size = protocol.Size(one_share=True)
    shares = [
        [share for kind, share, _ in protocol.cases(TABLE, seed, size, number) if kind != "real"]
        for number, seed in ((0, 0), (1, 0), (1, 1), (5, 0))
    ]
    assert shares[0] == shares[3] == [0.01, 0.05, 0.1, 0.2]
    assert shares[1:3] == [[0.05, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.01]]


def test_a_run_may_use_fewer_rows() -> None:
    (_, _, real), (_, share, planted), *_ = protocol.cases(TABLE, 0, protocol.Size(rows=200, planted_rows=50))
    assert len(real.values) == 200
    assert (share, (~planted.is_anomaly).sum()) == (0.01, 50)


def test_regret_is_the_distance_from_the_best_method_of_a_case() -> None:
    case: Row = {"set": "a", "protocol": "one-class", "kind": "real", "share": 0.1, "seed": 0}
    rows: list[Row] = [
        {**case, "method": "good", "auroc": 0.9, "ap": 0.5},
        {**case, "method": "bad", "auroc": 0.7, "ap": 0.6},
    ]
    good, bad = protocol.describe(rows).splitlines()[-2:]
    assert "0.0500" in good
    assert "0.1000" in bad
