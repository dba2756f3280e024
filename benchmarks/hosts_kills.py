"""Hosts that are killed while they work, for `benchmarks.hosts_runs`."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from ae_pipeline.latents.read import model_version_of
from ae_pipeline.lifecycle.plan import plan_serving
from ae_pipeline.registry.names import CHAMPION, GATE_TAG
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import hold_dataset
from benchmarks.hosts_look import look
from benchmarks.hosts_site import Site
from benchmarks.hosts_store import BUCKET, built, flights_attributes, ingest_days, rows_of
from benchmarks.report import Row

_SMALL_DAYS, _SMALL_ROWS, _CHANGED = 40, 150, 4
"""Days and rows of a day in the trials with kills, and days that land before a publication: one new, others again."""

_CHECKS = ("rows lost", "rows doubled", "rows that should not be there", "other model", "manifest differs")


class Kills:
    """Trials that kill hosts of a small sample of the flights.

    Args:
        root: Folder for working copies.
        files: Landed files of the whole flights.
        kills: Number of hosts in each trial that are killed while they work.
    """

    def __init__(self, root: Path, files: Sequence[Path], kills: int) -> None:
        self._kills, self._rng, self._free = kills, random.Random(0), list[float]()
        self._samples = root / "samples"
        self._samples.mkdir()
        for path in files[:_SMALL_DAYS]:
            self._write(path, _SMALL_ROWS)
        scale = {"days_per_run": 31, "runs_at_once": 2}
        attributes = {**flights_attributes(), "scale": scale, "training": {"epochs": 1}}
        self._site = Site(root / "kills", attributes, f"s3://{BUCKET}/kills")
        self._all = files
        self._site.land(sorted(self._samples.iterdir()))
        self._site.run("first", "intake")
        self._longest = max([self._site.run("first", "ingest", request.tags) for request in self._site.ranges()])

    def _write(self, path: Path, rows: int) -> Path:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: rows + 1]
        (self._samples / path.name).write_text("".join(lines), encoding="utf-8")
        return self._samples / path.name

    def _trials(self, counts: Counter[str]) -> Iterator[int]:
        """Count until enough hosts were killed at work, or too many had ended before."""
        counts["ended before the kill"] = counts["killed at work"] = 0
        self._free.clear()
        for number in range(3 * self._kills):
            if counts["killed at work"] == self._kills:
                return
            yield number

    def _kill(self, process: Any, counts: Counter[str], others: Sequence[Any] = ()) -> None:
        """Kill a process at a random time of its work. Measure how soon its lock is free, once others have ended."""
        process.join(self._rng.uniform(0, self._longest))
        if process.exitcode is None:
            counts["killed at work"] += 1
        else:  # the machine was slower when the time of a whole run was measured
            counts["ended before the kill"] += 1
            self._longest *= 0.7
        process.kill()
        for other in others:
            other.join()
        began = time.perf_counter()
        with locks().hold(dataset_lock(DatasetPaths(Path(), "flights"))):
            self._free.append(time.perf_counter() - began)
        process.join()

    def of_ranges(self) -> Row:
        """Kill one of two hosts that build ranges at the same time."""
        site, counts, waits = self._site, Counter[str](), list[float]()
        expected = built(site.dataset().paths)
        for _ in self._trials(counts):
            dataset = site.dataset()
            with hold_dataset(dataset.paths):
                for name in expected:
                    stage, _, file = name.partition("/")
                    (dataset.paths.root / stage / dataset.name / file).unlink()
            requests = site.ranges()
            hosts = [site.start(str(number), "ingest", request.tags) for number, request in enumerate(requests)]
            self._kill(hosts[-1], counts, hosts[:-1])
            killed_at = time.perf_counter()
            counts["failed"] += hosts[0].exitcode != 0
            for request in site.ranges():
                site.run("next", "ingest", request.tags)
            waits.append(time.perf_counter() - killed_at)
            paths = site.dataset().paths
            counts["files_that_differ"] += len(set(expected.items()) ^ set(built(paths).items()))
            counts["rows_doubled"] += sum(count > 1 for count in rows_of(paths).values())
        return self._row("kills beside another range", counts, ("failed", "files_that_differ", "rows_doubled"), waits)

    def of_trainings(self) -> Row:
        """Kill a training, and train again."""
        site, counts, waits = self._site, Counter[str](), list[float]()
        self._serve()
        self._longest = site.run("whole", "train")
        expected = set(rows_of(site.dataset().paths))
        for _ in self._trials(counts):
            self._kill(site.start("killed", "train", {}), counts)
            killed_at = time.perf_counter()
            site.run("next", "train")
            waits.append(time.perf_counter() - killed_at)
            counts += self._look(site.dataset(), expected)
            counts["versions without a result"] += sum(
                GATE_TAG not in version.tags for version in site.tracker.versions("flights")
            )
        return self._row("kills of a training", counts, (*_CHECKS, "versions without a result"), waits)

    def of_publications(self) -> Row:
        """Let days land, kill their publication, and publish again."""
        site, counts, waits = self._site, Counter[str](), list[float]()
        self._serve()
        self._longest = 0.0
        for number in self._trials(counts):
            landed = self._all[: _SMALL_DAYS + number + 1]
            site.land([self._write(path, _SMALL_ROWS - 1 - number) for path in landed[-_CHANGED:]])
            ingest_days(site.dataset())
            (request,) = self._publications()
            if not self._longest:
                self._longest = site.run("whole", "publish", request.tags)
                continue
            expected = set(rows_of(site.dataset().paths))
            self._kill(site.start("killed", "publish", request.tags), counts)
            killed_at = time.perf_counter()
            for left in self._publications():  # none if the killed run had ended its work
                site.run("next", "publish", left.tags)
            waits.append(time.perf_counter() - killed_at)
            dataset = site.dataset()
            counts += self._look(dataset, expected)
            counts["days_left"] += bool(plan_serving(dataset, site.tracker).work)
        return self._row("kills of a publication", counts, (*_CHECKS, "contract differs", "days_left"), waits)

    def _serve(self) -> None:
        """Publish all days, under the first model if none serves."""
        if self._site.tracker.version("flights", CHAMPION) is None:
            self._site.run("first", "train")
        for request in self._publications():
            self._site.run("first", "publish", request.tags)

    def _publications(self) -> list[dg.RunRequest]:
        dataset = self._site.dataset()
        return self._site.requested(plan_serving(dataset, self._site.tracker))

    def _look(self, dataset: Dataset, expected: set[str]) -> Counter[str]:
        """Return what is wrong with the raw rows and the published table."""
        version, rows = model_version_of(dataset.paths), rows_of(dataset.paths)
        counts = look("flights", str(dataset.paths.tables), version, expected)
        counts["rows lost"] += len(expected - rows.keys())
        counts["rows doubled"] += sum(count > 1 for count in rows.values())
        return counts

    def _row(self, trial: str, counts: Counter[str], names: Sequence[str], waits: Sequence[float]) -> Row:
        return {
            "trial": trial,
            **{
                name.replace(" ", "_"): int(counts[name])
                for name in ("killed at work", "ended before the kill", *names)
            },
            "free_slowest_s": round(max(self._free), 2),
            "next_run_median_s": round(sorted(waits)[len(waits) // 2], 1),
            "next_run_slowest_s": round(max(waits), 1),
        }
