"""`larmor doctor`: what is wrong is said with its remedy, and nothing that is wrong stops the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serve import doctor
from serve.doctor import Check


def test_this_machine_passes(capsys: pytest.CaptureFixture[str]):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "fail" not in printed
    assert printed.count(" ok ") + printed.count(" warn ") == len(doctor.CHECKS)


def test_broken_torchvision_is_reported_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.torch_pair()
    assert check.verdict == "fail"
    assert check.found.endswith("RuntimeError: operator torchvision::nms does not exist")
    assert "--reinstall-package torchvision" in check.remedy


def test_library_with_one_of_our_names_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stranger = tmp_path / "finetune"
    monkeypatch.setattr(doctor, "_folder_of", lambda name: stranger if name == "finetune" else doctor.HOME / name)
    check = doctor.larmor()
    assert check.verdict == "fail"
    assert check.found == f"finetune from {stranger}"


def test_slow_bf16_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_matmul_speedup", lambda: 0.2)
    check = doctor.bfloat16_on_cpu()
    assert check.verdict == "warn"
    assert "training.precision=fp32" in check.remedy


def test_deepspeed_without_a_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "0.19.8")
    monkeypatch.setattr(doctor.shutil, "which", lambda tool, path: None)
    assert doctor.deepspeed() == Check("DeepSpeed", "0.19.8, without g++ and ninja", "warn", "Install g++ and ninja.")


def test_check_that_breaks_is_a_failure_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken_one() -> Check:
        raise OSError("no such [device]")

    monkeypatch.setattr(doctor, "CHECKS", (broken_one, doctor.python))
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert "broken one" in printed
    assert "no such [device]" in printed
    assert sys.executable in printed
