"""The `larmor` command: quick to answer, and one line when the input is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import serve.__main__ as cli
from foundation.errors import InputError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The arguments each command's function was called with; the functions themselves are replaced."""
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "import_module", lambda module: _Recorder(seen))
    return seen


class _Recorder:
    def __init__(self, seen: list[dict[str, object]]):
        self._seen = seen

    def __getattr__(self, function: str):
        return lambda **arguments: self._seen.append(arguments)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_help_imports_only_the_standard_library_and_ours():
    code = (
        "import sys\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "from serve.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "roots = {name.split('.')[0] for name in sys.modules} - before\n"
        "print(sorted(roots - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "evaluate" in done.stdout
    assert done.stdout.splitlines()[-1] == "['foundation', 'serve']"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "writes" in capsys.readouterr().out


def test_read_passes_its_arguments(calls: list[dict[str, object]], model: Path, tmp_path: Path):
    options = ["--model", str(model), "--model", str(model), "--series", "5", "8.e1", "--visit", "2", "--bids"]
    assert cli.main(["read", str(tmp_path), "out", *options]) == 0
    chosen = {"choose": ["5", "8.e1"], "visit": 2, "bids": True, "deidentify": False}
    unnamed = {"backbones": [], "writers": [], "ehr": None, "study_uid": None, "at": None, "record_words": False}
    assert calls == [{"study": tmp_path, "out": Path("out"), "models": [model, model], **unnamed, **chosen}]


def test_evaluate_passes_its_arguments(calls: list[dict[str, object]], model: Path, tmp_path: Path):
    assert cli.main(["evaluate", "tumour", str(tmp_path), "out"]) == 0
    (given,) = calls
    assert {name: value for name, value in given.items() if value is not None} == {
        "task": "tumour",
        "manifest": tmp_path,
        "out": Path("out"),
        "split": "test",
        "trust": "",
        "backbones": [],
    }


def test_adapter_passes_its_arguments(calls: list[dict[str, object]], model: Path):
    assert cli.main(["adapter", str(model), "--backbone", str(model), "--merge", "out"]) == 0
    assert calls == [{"adapter": model, "backbones": [model], "merge": Path("out")}]


def test_every_trust_option_is_one_of_its_config(calls: list[dict[str, object]], model: Path, tmp_path: Path):
    from finetune.trust.report import PARTS, TrustConfig

    options = f"--trust all --cases 3 --seed 1 --by sex age --ood {tmp_path} --passes 2 --maps --allow-overlap"
    arguments = ["evaluate", "tumour", str(tmp_path), "out", *options.split(), "--pretrained-on", str(tmp_path)]
    assert cli.main(arguments) == 0
    (given,) = calls
    for name in ("task", "manifest", "out", "model", "split", "backbones"):
        del given[name]
    given["parts"] = given.pop("trust")
    config = TrustConfig.model_validate(given)
    assert set(given) == set(TrustConfig.model_fields) and config.parts == PARTS
    assert config.by == ("sex", "age") and config.allow_overlap and config.ood == (tmp_path,)


def test_serve_listens_on_this_machine_only_unless_told(calls: list[dict[str, object]]):
    assert cli.main(["serve"]) == 0
    (given,) = calls
    assert (given["host"], given["port"], given["behind_proxy"]) == ("127.0.0.1", 7860, False)
    assert given["data"] is given["users"] is given["watch"] is None and given["keep_days"] == 7.0


def test_reconstruct_passes_its_arguments(calls: list[dict[str, object]], tmp_path: Path):
    options = ["--method", "zero-filled", "pocs", "--acceleration", "4", "--calibration", "24", "--seed", "3"]
    assert cli.main(["reconstruct", str(tmp_path), "out", *options, "--mask", "random"]) == 0
    said = {"methods": ["zero-filled", "pocs"], "acceleration": 4.0, "mask": "random", "calibration": 24, "seed": 3}
    assert calls == [
        {"input": tmp_path, "out": Path("out"), "partial_fourier": None, "model": None, "denoise": 1.0, "hard": False}
        | said
    ]


@pytest.mark.parametrize("port", ["0", "99999", "http"])
def test_a_port_that_is_none_is_refused(port: str, calls: list[dict[str, object]]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serve", "--port", port])
    assert not calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "{here}/absent", "out"],
        ["read", "{here}", "out", "--model", "{here}"],
        ["evaluate", "tumour", "{here}/absent.csv", "out"],
        ["evaluate", "tumour", "{here}", "out", "--model", "{here}/absent"],
        ["serve", "--model", "{here}/absent"],
        ["serve", "--backbone", "{here}/absent"],
        ["adapter", "{here}/absent"],
        ["reconstruct", "{here}/absent.h5", "out"],
    ],
)
def test_wrong_path_is_one_line(
    arguments: list[str], calls: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([argument.format(here=tmp_path) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("larmor: ")
    assert printed.err.count("\n") == 1
    assert str(tmp_path) in printed.err
    assert not calls


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (
            InputError("a rule", got="this\nand that", remedy="Do so."),
            2,
            "larmor: a rule (got this and that). Do so.\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "out"), 2, "larmor: [Errno 13] Permission denied: 'out'\n"),
    ],
)
def test_exit_codes(
    raised: BaseException, code: int, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail() -> None:
        raise raised

    monkeypatch.setattr(cli, "import_module", lambda module: SimpleNamespace(main=fail))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == printed


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise ValueError("ours")

    monkeypatch.setattr(cli, "import_module", lambda module: SimpleNamespace(main=fail))
    with pytest.raises(ValueError, match="ours"):
        cli.main(["doctor"])
