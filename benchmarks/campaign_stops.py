"""Cases of `benchmarks.campaign`: signals, terminations, reboots, and runs side by side."""

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence

from ae_pipeline.orchestration.dead_runs import is_locked
from benchmarks.campaign_deployment import (
    COMPLETE,
    DATASET,
    LANDED,
    TRACEBACKS,
    TRAINED,
    Case,
    Deployment,
    Outcome,
    allowed,
    first_traceback,
    kill_descendants,
)

STEPS = (
    ("ingest", "features", LANDED),
    ("train", "autoencoder", COMPLETE),
    ("train", "champion", COMPLETE),
    ("publish", "latent_features", TRAINED),
    ("publish", "anomaly_report", TRAINED),
)
"""Jobs, the steps in which they are terminated, and the state in which the steps have work."""

MARKERS = (
    "Bringing",
    f"{DATASET}_intake",
    f"{DATASET}_ingest",
    f"{DATASET}_train",
    "epoch 1",
    f"{DATASET}_publish",
)
"""Texts of the output after which a command is stopped, in the order of a run."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

_STOP_SECONDS, _FREE_SECONDS = 2.0, 60.0
"""Time in which a command stops after a signal, and in which a dataset is free again, on an idle machine."""

Run = Callable[[Deployment], Outcome]


def stop_run(signals: Sequence[signal.Signals], delays: Sequence[float]) -> Run:
    """Return a function that stops `ae-pipeline run` once after each marker, and starts it again after each stop.

    Args:
        signals: Signal for each marker.
        delays: Time after the marker, in seconds. A stop can come after the next marker.
    """

    def run(deployment: Deployment) -> Outcome:
        total, times, stops, shown = Counter[str](), [], 0, ""
        for index, (signum, delay) in enumerate(zip(signals, delays, strict=True)):
            process, printed = deployment.start_until("run", MARKERS[index:])
            assert process.stdout is not None
            time.sleep(delay)
            began = time.monotonic()
            process.send_signal(signum)
            process.wait()
            seconds = time.monotonic() - began
            printed += process.stdout.read()
            total["tracebacks"] += sum(printed.count(word) for word in TRACEBACKS)
            shown = shown or first_traceback(printed)
            if process.returncode == 0:  # before the signal
                continue
            stops += 1
            killed = signum == signal.SIGKILL
            total["late"] += process.returncode != (-signum if killed else 128 + signum)
            if not killed:
                times.append(seconds)
                total["late"] += seconds > allowed(_STOP_SECONDS)
        return Outcome(total, f"stopped {stops} times{shown}", max(times, default=0.0))

    return run


def _terminate(job: str, step: str, *, backfill: bool = False) -> Run:
    """Return a function that terminates a run in a step through GraphQL: first safely, then the next one by force."""

    def run(deployment: Deployment) -> Outcome:
        total, statuses, times = Counter[str](), [], []
        with deployment.serving() as (_, api):
            for forced in (False, True):
                previous = deployment.champion_run()
                days = deployment.named_days
                launched = api.backfill(["latent_features"], days) if backfill else api.launch(job, days)
                run_id = api.run_of_backfill(launched) if backfill else launched
                api.wait_for_step(run_id, f"{DATASET}__{step}", allowed(_FREE_SECONDS))
                began = time.monotonic()
                api.terminate(run_id, forced=forced)
                status = api.wait_for_end(run_id, allowed(_FREE_SECONDS))
                times.append(time.monotonic() - began)
                end = time.monotonic() + allowed(5)
                while is_locked(deployment.paths) and time.monotonic() < end:
                    time.sleep(0.1)
                statuses.append(status.lower())
                total["blocked"] += is_locked(deployment.paths) or status == "CANCELING"
                serving = deployment.champion_run()
                total["promoted"] += status == "CANCELED" and serving == run_id and previous != run_id
        return Outcome(total, ", ".join(statuses), max(times))

    return run


def _reboot(origin: str) -> Run:
    """Return a function that kills every process during a run of some origin, and starts the servers again."""

    def run(deployment: Deployment) -> Outcome:
        days = deployment.named_days
        with deployment.serving() as (_, api):
            if origin == "command line":
                command = deployment.start("run", DATASET)
                run_id = api.wait_for_run()
            else:
                starts = {
                    "job": lambda: api.launch(f"{DATASET}_train", days),
                    "Materialize": lambda: api.materialize(["autoencoder"]),
                    "backfill": lambda: api.run_of_backfill(api.backfill(["latent_features"], days)),
                }
                run_id = starts[origin]()
                api.wait_for_status(run_id, "STARTED", allowed(90))
            kill_descendants()
            if origin == "command line":
                command.communicate()
        began = time.monotonic()
        with deployment.serving() as (_, api):
            status = api.wait_for_end(run_id, allowed(_FREE_SECONDS))
            seconds = time.monotonic() - began
            freed = api.wait_for_status(api.materialize(["champion"]), "STARTED", allowed(_FREE_SECONDS))
        return Outcome({"blocked": int(status not in {"FAILURE", "CANCELED"} or not freed)}, status.lower(), seconds)

    return run


def _failures(processes: Sequence["subprocess.Popen[str]"], printed: Sequence[str]) -> str:
    """Return the last line of each command that failed, for a note."""
    failed = [text for process, text in zip(processes, printed, strict=True) if process.returncode]
    return "".join(f"; {text.rstrip().splitlines()[-1][:300]}" for text in failed if text.strip())


def _beside_daemon(deployment: Deployment) -> Outcome:
    """Run the command while the daemon runs the same dataset; none may double or lose rows."""
    with deployment.serving() as (_, api):
        run_id = api.launch(f"{DATASET}_publish", deployment.named_days)
        began = time.monotonic()
        process = deployment.start("run", DATASET)
        printed, _ = process.communicate()
        status = api.wait_for_end(run_id, allowed(120))
    counts = {"tracebacks": printed.count("Traceback"), "blocked": int(process.returncode != 0)}
    note = f"the run of the daemon: {status.lower()}{_failures([process], [printed])}"
    return Outcome(counts, note, time.monotonic() - began)


def _two_commands(deployment: Deployment) -> Outcome:
    """Run the command twice at once; the second one waits and finds nothing to do."""
    began = time.monotonic()
    processes = [deployment.start("run", DATASET) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    trained = sum(f"{DATASET}_train" in text for text in printed)
    counts = {
        "tracebacks": sum(text.count("Traceback") for text in printed),
        "blocked": sum(process.returncode != 0 for process in processes),
        "doubled": max(trained - 1, 0),
    }
    note = f"{trained} of them trained{_failures(processes, printed)}"
    return Outcome(counts, note, time.monotonic() - began)


def _two_datasets(deployment: Deployment) -> Outcome:
    """Run two datasets at once over the same folders and databases."""
    began = time.monotonic()
    processes = [deployment.start("run", name) for name in (DATASET, "shuttle")]
    printed = [process.communicate()[0] for process in processes]
    counts = {
        "tracebacks": sum(text.count("Traceback") for text in printed),
        "blocked": sum(process.returncode != 0 for process in processes),
    }
    return Outcome(counts, f"both ran{_failures(processes, printed)}", time.monotonic() - began)


def stop_cases(kills: int, seed: int) -> list[Case]:
    """Return the cases of signals: in each, a run from the start is stopped once after each marker.

    Args:
        kills: Number of stops in all.
        seed: Seed of the signals and of the times.
    """
    rng = random.Random(seed)
    table = []
    for number in range(1, kills // len(MARKERS) + 1):
        signals = [SIGNALS[(number + index) % len(SIGNALS)] for index in range(len(MARKERS))]
        delays = [round(rng.uniform(0, 2), 2) for _ in MARKERS]
        table.append(Case(f"signals in every stage, round {number}", LANDED, stop_run(signals, delays)))
    return table


def run_cases() -> list[Case]:
    """Return the cases of terminations, reboots and runs side by side."""
    table = [
        Case(f"termination in {step}, safe then forced", state, _terminate(f"{DATASET}_{job}", step))
        for job, step, state in STEPS
    ]
    backfill = _terminate("", "latent_features", backfill=True)
    table.append(Case("termination of a backfill, safe then forced", TRAINED, backfill))
    states = {"job": COMPLETE, "Materialize": COMPLETE, "backfill": TRAINED, "command line": LANDED}
    table += [Case(f"reboot during a run: {origin}", state, _reboot(origin)) for origin, state in states.items()]
    return [
        *table,
        Case("a command beside the daemon", TRAINED, _beside_daemon),
        Case("two commands at once", LANDED, _two_commands),
        Case("two datasets at once", LANDED, _two_datasets),
    ]
