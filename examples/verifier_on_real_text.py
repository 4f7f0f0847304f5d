"""How much of real report text the verifier reads: python -m examples.verifier_on_real_text FOLDER

62 sentences of mtsamples' MRI reports, lumbar spine notes and ROCO's brain captions were drawn by a seed and read by hand before
the verifier saw them. What was read is below, by the sentence's number; the sentences themselves stay where they are, in FOLDER.
Prints precision and recall of each element. Nothing in the lexicon was changed after the sentences were read.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

from numpy.random import default_rng

from heads.report.verifier import parse

# Number of the sentence: findings as (name, certainty, side); names that no lexicon entry has are misses by intention.
Read = tuple[str, str, str | None]
FINDINGS: dict[int, list[Read]] = {
    7: [("disc herniation", "stated", "midline"), ("nerve compression", "stated", None)],
    9: [("disc herniation", "stated", None)],
    11: [("annular tear", "absent", None)],
    12: [("fracture", "absent", None)],
    15: [("disc degeneration", "stated", None), ("annular tear", "stated", None)],
    16: [("brain atrophy", "absent", None), ("annular tear", "possible", None)],
    21: [("tumour", "likely", None), ("nerve compression", "stated", None)],
    24: [("disc bulge", "stated", None), ("nerve compression", "stated", "bilateral")],
    25: [("disc bulge", "stated", None)],
    26: [("muscle spasm", "stated", None)],
    27: [("cyst", "stated", None)],
    28: [("disc bulge", "stated", None), ("nerve compression", "stated", None)],
    29: [("disc bulge", "stated", None), ("nerve compression", "stated", None)],
    30: [("disc herniation", "stated", "left"), ("nerve compression", "stated", None), ("disc degeneration", "stated", None)],
    31: [("muscle spasm", "stated", None)],
    32: [("cyst", "stated", "right")],
    34: [("disc bulge", "stated", None), ("nerve compression", "stated", None)],
    35: [("disc degeneration", "stated", None)],
    36: [("muscle spasm", "stated", None)],
    37: [("muscle spasm", "stated", None)],
    38: [("disc bulge", "stated", None), ("nerve compression", "stated", None)],
    39: [("muscle spasm", "stated", None)],
    40: [("fibrosis", "stated", None), ("nerve compression", "stated", "left")],
    41: [("disc degeneration", "stated", None)],
    45: [("abnormal signal", "stated", None), ("mass effect", "stated", None)],
    46: [("tumour", "stated", None)],
    47: [("abnormal signal", "stated", None)],
    48: [("malformation", "stated", None)],
    49: [("enhancing tumour", "stated", "left"), ("cyst", "stated", None)],
    50: [("malformation", "stated", None)],
    51: [("thrombosis", "possible", None), ("acute infarct", "stated", None), ("oedema", "stated", None)],
    52: [("abnormal signal", "stated", None)],
    53: [("abscess", "possible", "bilateral"), ("enhancing tumour", "stated", "right")],
    54: [("enhancing tumour", "stated", "left")],
    57: [("haemorrhage", "stated", "left")],
    58: [("tumour", "stated", None), ("enhancing tumour", "stated", None)],
    59: [("acute infarct", "stated", None)],
}  # fmt: skip
NUMBERS = {58: [("2.2", "cm"), ("2.2", "cm"), ("2.4", "cm")]}
RECORD = {0, 1, 2, 3, 4, 5, 6, 8, 9, 17, 18, 19, 20, 22, 23, 42, 46, 61}
PRIOR: set[int] = set()


def split(text: str) -> list[str]:
    """Frozen here, so that the numbers above stay those of the same sentences."""
    parts = re.split(r"(?<=[.!?])(?<!\b[Vv]s\.)(?<!\b[Dd]r\.)(?<!\bapprox\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+|\n+|//", text)
    return [part.strip(" -\t") for part in parts if part.strip(" -\t.")]


def sample(folder: Path) -> list[str]:
    rng = default_rng(2026)
    found: list[str] = []

    def draw(sentences: list[str], number: int) -> None:
        found.extend(sentences[at] for at in sorted(rng.choice(len(sentences), number, replace=False).tolist()))

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    reports = []
    for row in rows("reports_mtsamples_mri/mtsamples_mri.csv"):
        if row["is_mri_report"] == "1":
            text = re.sub(r"\.,", r". ", re.sub(r"([A-Z]{4,}[A-Z ]*:),", r". \1 ", row["text"]))
            body = text[text.find("FINDINGS") if "FINDINGS" in text else 0 :]
            reports += [re.sub(r"^[A-Z]{4,}[A-Z ]*: ?", "", one) for one in split(body)]
    draw([one for one in reports if 25 < len(one) < 260], 24)
    notes = [
        one for row in rows("reports_lumbar_spine/radiologist_notes.csv") for one in split(row["clinicians_notes"])
    ]
    draw([one for one in notes if 20 < len(one) < 260], 18)
    captions = rows("captions_roco_mri/mri_captions_ccby.csv")
    lines = [one for row in captions if row["brain"] == "1" for one in split(row["caption"])]
    draw([one for one in lines if 25 < len(one) < 260], 20)
    return found


def scores(sentences: list[str]) -> dict[str, tuple[int, int, int]]:
    """Of each element: right, said by the verifier, there by hand. Certainty and side are of findings that both have."""
    counts = {name: [0, 0, 0] for name in ("finding", "negation", "hedge", "side", "number", "prior", "record")}

    def add(name: str, said: set, there: set) -> None:
        for place, number in enumerate((len(said & there), len(said), len(there))):
            counts[name][place] += number

    for at, sentence in enumerate(sentences):
        parsed = parse(sentence)
        ours = {mention.finding: mention for mention in parsed.mentions}
        theirs = {name: (sure, side) for name, sure, side in FINDINGS.get(at, [])}
        add("finding", set(ours), set(theirs))
        both = set(ours) & set(theirs)
        add("negation", {n for n in both if ours[n].hedge == "absent"}, {n for n in both if theirs[n][0] == "absent"})
        doubts = ("likely", "possible", "unlikely")
        add("hedge", {n for n in both if ours[n].hedge in doubts}, {n for n in both if theirs[n][0] in doubts})
        add(
            "side", {(n, ours[n].side) for n in both if ours[n].side}, {(n, theirs[n][1]) for n in both if theirs[n][1]}
        )
        numbers = [one for mention in parsed.mentions for one in mention.numbers] + list(parsed.loose_numbers)
        add("number", set(numbers), set(NUMBERS.get(at, [])))
        add("prior", {at} if parsed.has_prior else set(), {at} & PRIOR)
        add("record", {at} if parsed.has_record else set(), {at} & RECORD)
    return {name: (right, said, there) for name, (right, said, there) in counts.items()}


def main(folder: Path) -> None:
    print("| element | precision | recall |\n|---|---|---|")
    for name, (right, said, there) in scores(sample(folder)).items():
        print(f"| {name} | {right} of {said} | {right} of {there} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
