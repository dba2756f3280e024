"""The benchmark on CUDA devices, as far as a machine without one can run it."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_a_device_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "gpu.json")])
    assert gpu.main() == 0
    assert capsys.readouterr().out == "no CUDA device\n"
    assert list(tmp_path.iterdir()) == []


def test_images_are_measured_on_the_cpu() -> None:
    figures = gpu.measure_images(gpu.Sizes(torch.device("cpu"), rows=0, fitted=0, images=16, rounds=1))
    assert {(each.method, each.metric) for each in figures[:2]} == {
        ("training", "images/s"),
        ("network in float64", "images/s"),
    }
    assert all(each.value > 0 for each in figures[:2])
    assert (figures[2].method, figures[2].value) == ("convolutional trainings that give the same bytes twice", 1.0)
