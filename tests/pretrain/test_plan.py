"""What is said before a run: the plan in the documentation is the printed one, and a dry run writes nothing."""

import os
from pathlib import Path

import pytest

from foundation.config import load_config
from foundation.errors import InputError
from foundation.files import check_writable
from pretrain.__main__ import main
from pretrain.config import PretrainConfig
from pretrain.plan import plan

ROOT = Path(__file__).parents[2]


def test_the_table_in_the_documentation_is_what_the_command_prints() -> None:
    written = (ROOT / "docs/scaling.md").read_text()
    for line in plan(load_config(PretrainConfig, ROOT / "configs/pretrain/base.yaml")):
        assert line in written, "python -m pretrain --plan configs/pretrain/base.yaml"


def test_a_dry_run_reports_and_writes_nothing(make_collection, tmp_path: Path, capsys) -> None:
    manifest, folder = make_collection(4), tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(f"manifest: {manifest}\nfolder: {folder}\nsplits: null\n")
    small = ["crop.voxels=24", "crop.spacing_mm=[4.0,4.5]", "training.batch_size=2", "training.num_workers=1"]
    assert main(["--dry-run", str(config), *small]) == 0
    said = capsys.readouterr().out
    for part in (
        "can be written",
        "single on 1 x cpu",
        "each process keeps",
        "tokens and",
        "gradient norm",
        "nothing was",
    ):
        assert part in said, said
    assert not folder.exists()


def test_an_unknown_flag_is_usage(capsys) -> None:
    assert main(["--dryrun", "config.yaml"]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="can be written"):
        check_writable(file / "run")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(InputError):
            check_writable(tmp_path / "run")
