"""The benchmark of anomaly detection in tables: the splits, failed methods, and the results file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyod")
pytest.importorskip("sklearn")

from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from benchmarks import detection, labelled_sets
from benchmarks.detection import Fitted
from benchmarks.labelled_sets import PROTOCOLS, Table

ROW = {
    *("set", "protocol", "method", "seed", "auroc", "ap"),
    *("fit_seconds", "score_seconds", "rows", "columns"),
}


def make_table(normal: int, anomalies: int, columns: int = 3, seed: int = 0) -> Table:
    """Return shuffled normal rows around 0 and anomalies around 4. The last column is the number of the row."""
    rng = np.random.default_rng(seed)
    is_anomaly = rng.permutation(np.arange(normal + anomalies) >= normal)
    values = rng.normal(4.0 * is_anomaly[:, None], 1, (normal + anomalies, columns))
    values[:, -1] = np.arange(len(values))
    return Table("made", values, is_anomaly)


def save(folder: Path, table: Table, name: str) -> Path:
    """Write a data set in the format of ADBench."""
    np.savez(folder / f"{name}.npz", X=table.values, y=table.is_anomaly.astype(int))
    return folder / f"{name}.npz"


def by_distance(train: np.ndarray, seed: int) -> Fitted:
    """Score by the distance from the mean of the training rows."""
    return Fitted(lambda values: np.linalg.norm((values - train.mean(0))[:, :-1], axis=1), None)


@pytest.mark.parametrize("normal", [100, 101])
def test_one_class_trains_on_half_of_the_normal_rows(normal: int) -> None:
    table = make_table(normal, 30)
    train, test, truth = labelled_sets.make_task(table, "one-class", seed=3)
    trained, tested = train[:, -1].astype(int), test[:, -1].astype(int)
    assert len(trained) == normal // 2
    assert not table.is_anomaly[trained].any()
    assert not set(trained) & set(tested)
    assert sorted([*trained, *tested]) == list(range(normal + 30))
    np.testing.assert_array_equal(truth, table.is_anomaly[tested])
    # The order of the protocol, computed in another way.
    indices = np.where(~table.is_anomaly)[0]
    np.random.RandomState(3).shuffle(indices)
    np.testing.assert_array_equal(trained, indices[: normal // 2])


def test_contaminated_trains_on_the_test_rows() -> None:
    table = make_table(50, 10)
    task = labelled_sets.make_task(table, "contaminated", seed=1)
    assert task.test is task.train
    np.testing.assert_array_equal(task.train, table.values)
    np.testing.assert_array_equal(task.truth, table.is_anomaly)


def test_a_large_set_is_cut_to_ten_thousand_rows() -> None:
    large, small = make_table(11_000, 500), make_table(9_990, 10)
    chosen = np.random.RandomState(2).permutation(11_500)[:10_000]
    cut = labelled_sets.cap_rows(large, seed=2)
    np.testing.assert_array_equal(cut.values[:, -1], chosen)
    np.testing.assert_array_equal(cut.is_anomaly, large.is_anomaly[chosen])
    np.testing.assert_array_equal(labelled_sets.cap_rows(small, seed=2).values, small.values)


def test_a_peer_gets_standardized_rows() -> None:
    received: dict[str, np.ndarray] = {}

    class Peer:
        def fit(self, values: np.ndarray) -> None:
            received["train"] = values
            self.decision_scores_ = values[:, 0]

        def decision_function(self, values: np.ndarray) -> np.ndarray:
            received["test"] = values
            return values[:, 0]

    rng = np.random.default_rng(0)
    train, test = (np.column_stack([rng.normal(50, 9, n), np.full(n, 7.0)]) for n in (40, 20))
    detection.fit_peer(lambda _: Peer(), train, 0).score(test)
    np.testing.assert_allclose(received["train"].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(received["train"].std(0), [1, 0])
    np.testing.assert_allclose(received["test"][:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std())
    np.testing.assert_array_equal(received["test"][:, 1], 0)


def test_training_rows_get_the_scores_from_fitting() -> None:
    table = make_table(80, 20)
    trial = detection.try_method(table, "contaminated", "KNN", seed=0)
    values = (table.values - table.values.mean(0)) / table.values.std(0)
    # Without rows, scikit-learn returns the neighbors of the fitted rows, and no row is its own neighbor.
    fifth = NearestNeighbors(n_neighbors=5).fit(values).kneighbors()[0][:, -1]
    assert trial.auroc == pytest.approx(roc_auc_score(table.is_anomaly, fifth))
    assert trial.ap == pytest.approx(average_precision_score(table.is_anomaly, fifth))
    assert (trial.rows, trial.columns, trial.error) == (100, 3, None)


def raises(train: np.ndarray, seed: int) -> Fitted:
    """Fail in fitting."""
    raise ValueError("too few\n rows")


def raises_on_scoring(train: np.ndarray, seed: int) -> Fitted:
    """Fail in scoring."""

    def score(values: np.ndarray) -> np.ndarray:
        raise np.linalg.LinAlgError("singular")

    return Fitted(score, None)


def scores_infinity(train: np.ndarray, seed: int) -> Fitted:
    """Return three infinite scores."""
    return Fitted(lambda values: np.where(np.arange(len(values)) < 3, np.inf, 0.0), None)


def never_ends(train: np.ndarray, seed: int) -> Fitted:
    """Compute for ever."""
    while True:
        train = np.sort(train)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (never_ends, "TimeoutError: not done after 0.1 s of the processor"),
        (raises, "ValueError: too few rows"),
        (raises_on_scoring, "LinAlgError: singular"),
        (scores_infinity, "3 of 80 scores are not finite"),
    ],
)
def test_a_failed_method_has_chance_figures_and_a_reason(
    method: Callable[..., Fitted], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "METHODS", {"good": by_distance, "bad": method})
    monkeypatch.setattr(detection, "LIMIT_SECONDS", 0.1)
    table = make_table(120, 20)
    trials = [detection.try_method(table, "one-class", name, 5) for name in ("good", "bad")]
    assert (trials[1].auroc, trials[1].ap, trials[1].error) == (0.5, 20 / 80, error)
    assert trials[1].row() == {**trials[1].row(), "auroc": 0.5, "ap": 0.25, "error": error}
    assert trials[0].row().keys() == ROW
    assert trials[0].auroc > 0.95


def test_tables_mark_and_list_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "METHODS", {"good": by_distance, "bad": raises})
    table = make_table(120, 20)
    trials = [
        detection.try_method(table, protocol, name, seed)
        for seed in (5, 6)
        for protocol in labelled_sets.PROTOCOLS
        for name in ("good", "bad")
    ]
    text = detection.describe(trials)
    assert "0.500*" in text
    assert "2 of 2" in text
    assert "- bad on made, one-class, seed 5, 6: ValueError: too few rows" in text
    assert "failed, and counted" not in detection.describe([trial for trial in trials if trial.method == "good"])


def test_a_fault_of_the_benchmark_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(train: np.ndarray, seed: int) -> Fitted:
        raise AssertionError

    monkeypatch.setattr(detection, "METHODS", {"broken": breaks})
    with pytest.raises(AssertionError):
        detection.try_method(make_table(30, 5), "one-class", "broken", 0)


def test_a_run_writes_a_row_for_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detection, "METHODS", {"good": by_distance, "bad": raises})
    for name, anomalies in (("b", 20), ("a", 10), ("c", 0)):
        save(tmp_path, make_table(60, anomalies), name)
    detection.run(tmp_path, ["good", "bad"], [0, 1], tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["name"] == "detection"
    assert {"pyod", "scikit-learn"} <= report["environment"]["versions"].keys()
    rows: list[dict[str, Any]] = report["rows"]
    assert len({(row["set"], row["protocol"], row["method"], row["seed"]) for row in rows}) == len(rows) == 16
    assert list(dict.fromkeys(row["set"] for row in rows)) == ["a", "b"]
    assert all(row.keys() == (ROW if row["method"] == "good" else {*ROW, "error"}) for row in rows)
    assert {row["rows"] for row in rows if row["set"] == "a"} == {30, 70}
    # A data set without anomalies cannot evaluate a method.
    assert "c, seed 1: skipped" in capsys.readouterr().out


def test_a_resumed_run_measures_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, make_table(60, 20), "a")
    out = tmp_path / "out.json"
    monkeypatch.setattr(detection, "METHODS", {"good": by_distance, "bad": raises})
    detection.run(tmp_path, ["bad"], [0], out)
    before = json.loads(out.read_text())["rows"]

    def breaks(train: np.ndarray, seed: int) -> Fitted:
        raise AssertionError

    monkeypatch.setattr(detection, "METHODS", {"good": by_distance, "bad": breaks})
    detection.run(tmp_path, ["good", "bad"], [0], out, resume=True)
    rows = json.loads(out.read_text())["rows"]
    assert rows[:2] == before
    assert [(row["method"], row["protocol"]) for row in rows[2:]] == [("good", name) for name in PROTOCOLS]


def test_our_method_accepts_any_scale_and_constants() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(402, 2)) @ rng.normal(size=(2, 12)) + rng.normal(0, 0.1, (402, 12))
    values[400:] = 3 * rng.normal(size=(2, 12))  # not on the plane of the other rows
    values *= np.logspace(-3, 5, 12)
    values[:, 5] = 3.0
    scores = detection.fit_ours(values[:400], seed=1)(values)
    assert scores.shape == (402,)
    assert scores[400:].min() > scores[:400].max()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((3, 2))}, "no array 'y'"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(2)}, "shape"),
        ({"X": np.zeros((3, 2)), "y": np.array([0, 1, 2])}, "0 or 1"),
    ],
)
def test_a_file_without_a_set_is_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **content)
    with pytest.raises(ValueError, match=message):
        labelled_sets.read_set(tmp_path / "set.npz")


def test_whole_numbers_are_read_as_floats(tmp_path: Path) -> None:
    values = np.array([[200, 1], [3, 4]], np.uint8)
    np.savez(tmp_path / "set.npz", X=values, y=np.array([0, 1]))
    name, read, is_anomaly = labelled_sets.read_set(tmp_path / "set.npz")
    assert (name, read.dtype) == ("set", np.dtype(np.float64))
    assert (read.tolist(), is_anomaly.tolist()) == (values.tolist(), [False, True])
