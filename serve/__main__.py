"""The `larmor` command.

Each subcommand is a function found by name when it is asked for and called with its arguments by keyword. So `larmor
--help` imports nothing slow, and one stage can be started from here without serve importing it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from foundation.errors import InputError

COMMANDS = {
    "read": "serve.pipeline:read_to_folder",
    "dicom": "foundation.reading.dicom.study:dicom_command",
    "deidentify": "foundation.reading.dicom.study:deidentify_command",
    "compare": "serve.longitudinal:compare_command",
    "adapter": "heads.adapters.command:adapter_command",
    "evaluate": "finetune.evaluate:evaluate_to_folder",
    "report-train": "heads.report.command:train_command",
    "report-evaluate": "finetune.report:evaluate_command",
    "fewshot": "finetune.fewshot:fewshot_command",
    "prognosis": "finetune.prognosis.command:prognosis_command",
    "serve": "serve.server:serve_command",
    "users": "serve.users:users_command",
    "audit": "serve.audit:audit_command",
    "cohort": "serve.cohort:cohort_command",
    "record": "ehr.command:record_command",
    "prepare": "foundation.store.command:prepare_command",
    "reconstruct": "heads.reconstruction.command:reconstruct_command",
    "repair": "heads.reconstruction.repair:repair_command",
    "map": "heads.synthesis.command:map_command",
    "synthesise": "heads.synthesis.command:synthesise_command",
    "doctor": "serve.doctor:main",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 the command says so, 2 the input was wrong, 130 interrupted."""
    arguments = vars(_parser().parse_args(argv))
    try:
        command = arguments.pop("command")
        _check_paths(arguments)
        result = _load(COMMANDS[command])(**arguments)
    except InputError as error:
        print(f"larmor: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, no space, a file where a folder should be
        print(f"larmor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="larmor", description="Read MRI studies, evaluate models, open the page.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")

    read = command("read", "read one study; writes masks, findings and the drafted report into OUT")
    read.add_argument(
        "study", type=Path, metavar="STUDY",
        help="a DICOM folder or zip, a NIfTI file, a folder of one visit's, or manifest.jsonl#SUBJECT",
    )  # fmt: skip
    read.add_argument("out", type=Path, metavar="OUT", help="the folder to write into; made if absent")
    read.add_argument("--bids", action="store_true", help="write the masks as a BIDS derivative too")
    read.add_argument(
        "--deidentify", action="store_true", help="let no DICOM output name the patient: pseudonym and new UIDs"
    )
    _add_choice(read)
    _add_writers(read)
    read.add_argument(
        "--ehr", type=Path, metavar="RECORD",
        help="the patient's FHIR record, for the report's indication and history and for models that read one",
    )  # fmt: skip
    read.add_argument(
        "--record-words", action="store_true", help="quote the request's own words too; they may name the patient"
    )
    read.add_argument("--study-uid", metavar="UID", help="the study's name in the record (default: its only MR study)")
    read.add_argument("--at", metavar="TIME", help="when the study began, if the record does not say")
    _add_models(read)

    dicom = command("dicom", "list the series of a DICOM study, and why some are set aside; writes nothing")
    dicom.add_argument("study", type=Path, metavar="STUDY", help="a DICOM folder, zip or file")
    dicom.add_argument("--visit", type=int, metavar="N", help="which, where there are several; 1 is the earliest")
    dicom.add_argument("--names", action="store_true", help="show descriptions too; they may name the patient")

    deidentify = command("deidentify", "take the identity off a DICOM study; writes its images into OUT")
    deidentify.add_argument("study", type=Path, metavar="STUDY", help="a DICOM folder, zip or file")
    deidentify.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    deidentify.add_argument(
        "--key", type=Path, metavar="FILE", help="32 secret bytes: the same patient gets the same pseudonym under them"
    )

    compare = command("compare", "read two dates of one patient; writes what changed into OUT")
    compare.add_argument("prior", type=Path, metavar="PRIOR", help="the earlier study, as for read")
    compare.add_argument("current", type=Path, metavar="CURRENT", help="the later one")
    compare.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    compare.add_argument("--same-patient", action="store_true", help="though the studies are named differently")
    _add_writers(compare)
    _add_models(compare)

    adapter = command(
        "adapter", "check what a task adds to a backbone; with --merge, writes the whole model that both make"
    )
    adapter.add_argument("adapter", type=Path, metavar="DIR", help="an adapter folder made by finetune")
    adapter.add_argument("--merge", type=Path, metavar="OUT", help="the model folder to write; it needs no backbone")
    _add_backbones(adapter)

    evaluate = command("evaluate", "score a model on labelled studies; writes metrics with intervals into OUT")
    evaluate.add_argument("task", metavar="TASK", help="a task's name, as under configs/finetune/")
    evaluate.add_argument(
        "manifest", type=Path, metavar="MANIFEST", help="the file that lists the studies and their labels"
    )
    evaluate.add_argument("out", type=Path, metavar="OUT", help="the folder to write into; made if absent")
    evaluate.add_argument("--model", type=Path, metavar="DIR", help="a model folder made by finetune")
    _add_backbones(evaluate)
    evaluate.add_argument("--split", default="test", help="which of the manifest's splits (default: %(default)s)")
    evaluate.add_argument(
        "--trust", default="", metavar="PARTS",
        help="all, or some of leaks,calibration,conformal,uncertainty,subgroups,ood,failures,corruption,agreement",
    )  # fmt: skip
    evaluate.add_argument("--cases", type=int, metavar="N", help="cases for the slow parts of --trust (default: 5)")
    evaluate.add_argument("--seed", type=int, help="draws those cases (default: 0)")
    evaluate.add_argument("--by", nargs="+", metavar="COLUMN", help="columns of targets for the subgroups")
    evaluate.add_argument("--ood", type=Path, nargs="+", metavar="MANIFEST", help="studies of another kind")
    evaluate.add_argument("--passes", type=int, metavar="N", help="further looks at each case, for its uncertainty")
    evaluate.add_argument("--maps", action="store_true", default=None, help="write each case's uncertainty map")
    evaluate.add_argument(
        "--pretrained-on", type=Path, nargs="+", metavar="PATH", help="a store or manifest the encoder learnt from"
    )
    evaluate.add_argument(
        "--allow-overlap", action="store_true", default=None, help="evaluate on subjects that were learnt from"
    )

    learn = command("report-train", "train what words reports, on imagined synthetic patients; writes OUT/model")
    learn.add_argument("out", type=Path, metavar="OUT", help="a new folder, or one to continue in")
    learn.add_argument("--from", dest="start", type=Path, metavar="DIR", help="fit this language model, by LoRA")
    learn.add_argument(
        "--images", type=Path, metavar="COHORT", help="learn on these patients instead, whose images it sees too"
    )
    learn.add_argument("--encoder", type=Path, metavar="DIR", help="the frozen encoder that it sees images through")
    learn.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="as training.steps=300"
    )

    scored = command("report-evaluate", "score drafted reports on a cohort, in three parts; writes tables into OUT")
    scored.add_argument("cohort", type=Path, metavar="COHORT", help="a folder that larmor cohort wrote")
    scored.add_argument("out", type=Path, metavar="OUT", help="the folder to write into; made if absent")
    scored.add_argument(
        "--writer", dest="writers", type=Path, action="append", default=[], metavar="DIR", help="as for read"
    )
    _add_models(scored)
    scored.add_argument("--split", help="with --model, only this split of the cohort's manifest")
    scored.add_argument("--studies", type=int, metavar="N", help="with --model, only the first N")
    scored.add_argument("--noise", type=float, help="without --model, how wrong the imitated reader is (default: 0.1)")
    scored.add_argument("--seed", type=int, default=0, help="of its errors (default: %(default)s)")

    fewshot = command("fewshot", "fit a task in every way with few labels and many; writes a table and a curve")
    fewshot.add_argument("config", type=Path, metavar="CONFIG", help="as of finetune; its folder is written into")
    fewshot.add_argument("--labels", default="5,10,20,50,all", help="how many labels (default: %(default)s)")
    fewshot.add_argument("--seeds", type=int, default=3, help="how many of each (default: %(default)s)")
    fewshot.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="what differs from the config"
    )
    fewshot.add_argument("--rows", help="only these recipes, as: scratch,lora,atlas (default: all that can do it)")

    fewshot.add_argument(
        "--record", action="store_true", help="one recipe without the patient's record and with it, and the difference"
    )

    prognosis = command(
        "prognosis", "put a prognosis beside everything that it has to beat; writes a table and pictures"
    )
    prognosis.add_argument("config", type=Path, metavar="CONFIG", help="as of finetune, or one of a table")
    prognosis.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="what differs from the config"
    )
    prognosis.add_argument("--folds", type=int, default=5, help="of cross-validation (default: %(default)s)")
    prognosis.add_argument("--repeats", type=int, default=1, help="of it all, otherwise cut (default: %(default)s)")
    prognosis.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    prognosis.add_argument(
        "--rows", metavar="TITLES", help="only these rows, by title, with ';' between (default: all)"
    )
    prognosis.add_argument(
        "--measured-by",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="models whose volumes are seen of images too",
    )
    prognosis.add_argument(
        "--measured",
        nargs="+",
        default=[],
        metavar="NAME",
        help="targets of the manifest that were measured in the images",
    )
    prognosis.add_argument("--picture", metavar="TITLE", help="the row to draw (default: both, deep)")

    serve = command("serve", "open the page; without --data what it writes goes when the server stops")
    _add_models(serve)
    _add_writers(serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    serve.add_argument("--port", type=_port, default=7860, help="port to listen on (default: %(default)s)")
    serve.add_argument(
        "--data", type=Path, metavar="DIR", help="keep cases and their audit here, for the server's user only"
    )
    serve.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="who may log in, made by larmor users; else one user, by a secret link",
    )
    serve.add_argument(
        "--keep-days", type=float, default=7.0, metavar="N", help="after which a case is deleted (default: %(default)g)"
    )
    serve.add_argument(
        "--max-upload", type=int, default=4096, metavar="MIB",
        help="of one request; a user may send four times as much an hour (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--behind-proxy",
        action="store_true",
        help="a proxy on this machine brings TLS and says who asks; cookies need it",
    )
    serve.add_argument("--root-path", default="", metavar="PATH", help="where the proxy has the page, as /larmor")
    serve.add_argument(
        "--watch", type=Path, metavar="DIR", help="take the DICOM studies that a PACS puts into this folder"
    )
    serve.add_argument("--watch-user", metavar="NAME", help="whose cases they become")
    serve.add_argument(
        "--quiet-s", type=float, default=30.0, metavar="S",
        help="how long nothing may have come of a study before it is taken (default: %(default)g)",
    )  # fmt: skip

    serve.add_argument(
        "--repair",
        type=Path,
        metavar="DIR",
        help="the model that shows series before and after a repair (default: the one that comes with Larmor)",
    )

    users = command("users", "say who may log in to the page; writes hashes into FILE, and no password")
    users.add_argument("what", choices=("add", "remove", "list"), help="add also changes a password and the token")
    users.add_argument("name", nargs="?", metavar="NAME", help="whom: 1 to 32 of a-z, 0-9, '.', '_', '-'")
    users.add_argument("--file", type=Path, required=True, metavar="FILE", help="as given to serve --users")

    audit = command(
        "audit", "check that a server's audit is whole, and print its end; writes nothing unless told where"
    )
    audit.add_argument("data", type=Path, metavar="DIR", help="the folder of serve --data")
    audit.add_argument("--noted", metavar="HASH", help="printed earlier: is it still part of the history?")
    audit.add_argument("--fhir", type=Path, metavar="FILE", help="write it as FHIR AuditEvents and Provenances")
    audit.add_argument("--version", choices=("R4B", "R5"), default="R4B", help="of FHIR (default: %(default)s)")

    cohort = command("cohort", "make synthetic patients with exact truth; writes studies and a manifest into OUT")
    cohort.add_argument("out", type=Path, metavar="OUT", help="a new folder, or one to continue in")
    cohort.add_argument("--subjects", type=int, default=24, help="how many (default: %(default)s)")
    cohort.add_argument("--seed", type=int, help="another seed is another cohort (default: 0)")
    cohort.add_argument("--spacing", dest="spacing_mm", type=float, metavar="MM", help="1, 2 or 4 (default: 2)")
    cohort.add_argument(
        "--contrasts", nargs="+", metavar="NAME", help="T1w T1w-contrast T2w FLAIR PD DWI ADC T2star SWI"
    )
    cohort.add_argument("--appearance", help="physics, random or mixed (default: physics)")
    cohort.add_argument("--family", help="usual, or shifted: scanners and lesions held apart (default: usual)")
    cohort.add_argument("--anatomy", type=Path, metavar="DIR", help="whole-head label maps to start from")
    cohort.add_argument("--maps", action="store_true", default=None, help="T1, T2 and ADC maps too")
    cohort.add_argument("--raw", action="store_true", default=None, help="multi-coil k-space of a few slices too")
    cohort.add_argument("--record", default="mixed", help="FHIR records: R4, R5, mixed or none (default: %(default)s)")
    cohort.add_argument(
        "--report", default="any", choices=["any", "none"], help="a reader's report too, in any style (default: any)"
    )
    cohort.add_argument("--processes", type=int, help="how many at a time (default: every core)")

    record = command("record", "say in counts what a patient's FHIR record holds; writes nothing unless told where")
    record.add_argument(
        "source", type=Path, metavar="SOURCE", help="a bundle, NDJSON or a folder of them, gzipped or not"
    )
    record.add_argument("--strict", action="store_true", help="take only resources that are valid FHIR")
    record.add_argument("--zone", metavar="NAME", help="where times without a zone were written, as Europe/Berlin")
    record.add_argument(
        "--study", dest="study_uid", metavar="UID", help="the index study; says what may be known when it is read"
    )
    record.add_argument("--at", metavar="TIME", help="when it began, if the record does not say")
    record.add_argument("--landmark", metavar="NAME=TIME", help="a later moment to look from, as surgery=2020-05-07")
    record.add_argument("--audit", type=Path, metavar="FILE", help="write what was kept and left out, and why, as JSON")
    record.add_argument("--quarantine", type=Path, metavar="FILE", help="write what could not be read, with its place")
    record.add_argument("--meds", type=Path, metavar="OUT", help="write all of it as MEDS (Parquet) into a new folder")

    prepare = command("prepare", "make a collection ready for pretraining; writes volumes and an index into STORE")
    prepare.add_argument(
        "paths", type=Path, nargs="+", metavar="MANIFEST STORE",
        help="what to read, and the folder to write or continue; STORE alone with --hf or --verify",
    )  # fmt: skip
    prepare.add_argument("--hf", metavar="NAME", help="a Hugging Face data set, or a folder that datasets can load")
    prepare.add_argument("--column", help="its column of NIfTI files")
    prepare.add_argument("--split", help="its split (default: train)")
    prepare.add_argument("--streaming", action="store_true", help="fetch its volumes as they are needed")
    prepare.add_argument("--shard", default="0/1", metavar="I/N", help="the I-th of N machines (default: %(default)s)")
    prepare.add_argument(
        "--verify", action="store_true", help="check a store against its hashes; 1 if anything differs"
    )
    prepare.add_argument("--budget", type=float, default=0.01, help="share of bad files that ends it (default: 0.01)")
    prepare.add_argument("--processes", type=int, help="how many at a time (default: every core)")
    prepare.add_argument("--chunk", type=int, metavar="VOXELS", help="edge of a chunk (default: 32)")
    prepare.add_argument("--level", type=int, help="of zstd, 1 fast to 9 small (default: 5)")
    prepare.add_argument("--margin", type=float, metavar="MM", help="air kept around the body (default: 4)")
    prepare.add_argument("--shard-mib", type=float, metavar="MIB", help="size of a shard file (default: 1024)")

    reconstruct = command("reconstruct", "make images of raw k-space; writes them, their errors and a figure into OUT")
    reconstruct.add_argument(
        "input", type=Path, metavar="INPUT", help="fastMRI or ISMRMRD .h5, BART .cfl, .npy or .npz"
    )
    reconstruct.add_argument("out", type=Path, metavar="OUT", help="the folder to write into; made if absent")
    reconstruct.add_argument(
        "--method", dest="methods", nargs="+", default=["cg-sense"], metavar="NAME",
        help="zero-filled zero-filled-sense cg-sense l1-wavelet homodyne pocs learned (default: cg-sense)",
    )  # fmt: skip
    reconstruct.add_argument("--acceleration", type=float, metavar="R", help="first keep one sample in R of all")
    reconstruct.add_argument(
        "--mask", metavar="KIND", help="random, equispaced, magic, poisson, or stored: the one in the file"
    )
    reconstruct.add_argument("--calibration", type=int, metavar="N", help="lines in the middle that are all kept")
    reconstruct.add_argument("--partial-fourier", type=float, metavar="F", help="keep only this part, from one end")
    reconstruct.add_argument("--seed", type=int, default=0, help="of the mask (default: %(default)s)")
    reconstruct.add_argument(
        "--model", type=Path, metavar="DIR", help="what 'learned' means, if not the network that comes with Larmor"
    )
    reconstruct.add_argument(
        "--denoise",
        type=float,
        default=1.0,
        metavar="S",
        help="what it does about noise, 0 to 1 (default: %(default)s)",
    )
    reconstruct.add_argument(
        "--hard", action="store_true", help="'learned' puts what was measured back into every coil, noise and all"
    )

    repair = command("repair", "take noise, a ghost, motion or thick slices out of an image; writes it into OUT")
    repair.add_argument("input", type=Path, metavar="IMAGE", help="a NIfTI file")
    repair.add_argument("out", type=Path, metavar="OUT", help="the folder to write into; made if absent")
    repair.add_argument("--model", type=Path, metavar="DIR", help="another network than the one that comes with Larmor")
    repair.add_argument(
        "--fault", required=True, metavar="NAME", help="noise, 'thick slices', ghost or motion: what is wrong with it"
    )
    repair.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="how much to do about it, 0 to 1 (default: %(default)s)",
    )

    for name, help in (
        ("map", "estimate T1, T2 and ADC maps from a study's series; writes them into OUT, marked as predicted"),
        ("synthesise", "predict a series that a study lacks; writes it into OUT, marked as predicted"),
    ):
        guess = command(name, help)
        guess.add_argument("study", type=Path, metavar="STUDY", help="as for read")
        guess.add_argument("out", type=Path, metavar="OUT", help="the folder to write into; made if absent")
        guess.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model of heads/synthesis")
    guess.add_argument("--contrast", required=True, metavar="NAME", help="T1w, T2w, FLAIR, PD or DWI")

    command("doctor", "say what this machine has and how to mend what is wrong; writes nothing")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 2**16:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {port}")
    return port


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--series", dest="choose", nargs="+", default=[], metavar="LABEL[=CONTRAST]",
        help="which DICOM series, as larmor dicom labels them; the first is the one that masks are drawn on",
    )  # fmt: skip
    parser.add_argument("--visit", type=int, metavar="N", help="which DICOM visit, where there are several")


def _add_writers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--writer", dest="writers", type=Path, action="append", default=[], metavar="DIR",
        help="who words the report: a folder of report-train, or of a language model; repeat from best to plainest",
    )  # fmt: skip


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", dest="models", type=Path, action="append", default=[], metavar="DIR",
        help="a model or adapter folder made by finetune; repeat for several",
    )  # fmt: skip
    _add_backbones(parser)


def _add_backbones(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backbone", dest="backbones", type=Path, action="append", default=[], metavar="DIR",
        help="the folder that an adapter was fitted on, if it is neither where it was nor beside the adapter; repeatable",
    )  # fmt: skip


def _check_paths(arguments: dict[str, Any]) -> None:
    """Complain about a path before anything slow is imported."""
    for name in ("study", "prior", "current", "manifest", "config", "input", "cohort", "ehr"):
        path = arguments.get(name)
        if path is not None and not path.exists() and not (name in ("study", "prior", "current") and "#" in str(path)):
            raise InputError(f"the {name} exists", got=path, remedy="Give the path of an existing one.")
    named = [
        arguments.get("model"),
        arguments.get("adapter"),
        arguments.get("repair"),
        *arguments.get("models", []),
        *arguments.get("measured_by", []),
        *arguments.get("backbones", []),
    ]
    for folder in named:
        if folder is not None and not (folder / "config.json").is_file():
            remedy = "Give a folder that pretraining or fine-tuning wrote."
            raise InputError("a model is a folder that holds config.json", got=folder, remedy=remedy)


def _load(target: str) -> Callable[..., object]:
    module, function = target.split(":")
    return getattr(import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
