"""What a clinician does at the desk, in a browser: redraw a mask, look at a repaired series, bring a record, think better of it."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ehr.synthesis import make_bundle
from foundation.preprocess import Grid, sample_at
from foundation.reading.nifti import write_volume
from serve.cases import display_grid
from tests.ehr.making import patient_truth
from tests.serve.browsing import CHROMIUM, Serving, Watched, browsing, serving
from tests.serve.making import head_file, head_series, tiny_model
from tests.serve.test_repairs import repair_model

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("desk")
    repair = repair_model(folder / "repair")
    with serving(folder / "temporary", [tiny_model(folder / "all")], "--repair", str(repair)) as server:
        yield server


@pytest.fixture
def watched(desk: Serving) -> Iterator[Watched]:
    with browsing() as watched:
        watched.page.goto(desk.link)
        yield watched
        assert not watched.asked_elsewhere(desk.address), watched.asked_elsewhere(desk.address)
        assert not watched.complaints, watched.complaints


def read(page: Any, *files: Path) -> Any:
    """Drop files, have them read, and the viewer that shows them."""
    from playwright.sync_api import expect

    page.set_input_files("#files input[type=file]", list(files))
    expect(page.locator("#files .file-preview")).to_be_visible()
    page.get_by_role("button", name="Read the study").click()
    viewer = page.locator("[data-state]").first
    expect(viewer).to_have_attribute("data-state", "shown", timeout=180_000)
    return viewer


def volumes(page: Any) -> list[str]:
    return page.locator(".findings tbody td.number:nth-child(5)").all_inner_texts()


def taken_mask(page: Any) -> nib.nifti1.Nifti1Image:
    """The mask that everything holds which is taken away."""
    from playwright.sync_api import expect

    page.get_by_role("tab", name="Take away").click()
    link = page.locator("#outputs a", has_text="Everything")
    expect(link).to_be_visible()
    with page.expect_download() as download:
        link.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        return nib.nifti1.Nifti1Image.from_bytes(gzip.decompress(archive.read("masks/all.nii.gz")))


def test_a_mask_is_redrawn_and_everything_follows(watched: Watched, tmp_path: Path):
    """On a series that is finer than its copy in the viewer."""
    from playwright.sync_api import expect

    coarse = head_series(8.0)
    affine = np.diag([0.75, 8.0, 8.0, 1.0])
    affine[:3, 3] = [0.375 - 96, *coarse.affine[1:3, 3]]
    voxels = sample_at(coarse.voxels, coarse.affine, Grid((256, 24, 24), affine))
    series = coarse.with_voxels(voxels.astype(np.float32), affine)
    assert display_grid(series)[1].spacing_mm[0] > 0.8
    write_volume(tmp_path / "sub-7_T1w.nii.gz", series.voxels, series)

    page = watched.page
    viewer = read(page, tmp_path / "sub-7_T1w.nii.gz")
    before, old = taken_mask(page), volumes(page)
    page.get_by_role("tab", name="Report").click()
    page.get_by_role("button", name="Accept tumour right").click()
    page.get_by_role("button", name="Axial").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(viewer).to_have_attribute("data-drawing", "pen")
    page.get_by_role("button", name="Eraser").click()
    page.get_by_label("Size").select_option("9")
    box = page.locator("#viewer canvas").bounding_box()
    x, y = box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5  # the patient's right
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 8, y + 30, steps=5)
    page.mouse.up()
    expect(viewer).to_have_attribute("data-strokes", "1")
    at = viewer.get_attribute("data-at")
    page.get_by_role("button", name="Keep the mask").click()
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    expect(viewer).to_have_attribute("data-drawing", "")
    expect(viewer).to_have_attribute("data-at", at or "")  # nobody is taken away from what he drew
    expect(page.locator("table.findings")).to_contain_text("outlined by a clinician")
    expect(page.get_by_role("button", name="Accept tumour right")).to_have_attribute("aria-pressed", "false")
    now = volumes(page)
    assert now[0] != old[0] and now[1] == old[1]
    right = float(re.sub("[^0-9.]", "", now[0]))
    expect(page.locator("#report .impression")).to_contain_text(f"{right:g} ml")

    after = taken_mask(page)
    changed = np.argwhere(np.asarray(after.dataobj) != np.asarray(before.dataobj))
    assert len(changed) > 20 and not np.asarray(after.dataobj)[tuple(changed.T)].any()
    mm = nib.affines.apply_affine(after.affine, changed)
    assert (mm[:, 0] > 0).all() and np.ptp(mm[:, 2]) == 0 and np.ptp(mm[:, 0]) < 40 and np.ptp(mm[:, 1]) < 130

    page.reload()
    expect(viewer).to_have_attribute("data-state", "shown")
    assert volumes(page) == now
    page.get_by_role("button", name="Sign as final").click()
    expect(page.locator("#head .pill")).to_have_text("final")
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_hidden()
    page.get_by_label("Why it is amended").fill("one more stroke")
    page.get_by_role("button", name="Amend", exact=True).click()
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_a_series_is_shown_as_measured_and_as_repaired(watched: Watched, tmp_path: Path):
    from playwright.sync_api import expect

    page = watched.page
    read(page, head_file(tmp_path / "sub-8_T1w.nii.gz", 8.0))
    page.get_by_role("tab", name="Repair").click()
    page.get_by_role("button", name="Show it repaired").click()
    images = page.locator("#repaired .pair img")
    expect(images).to_have_count(2)
    expect(page.locator("#repaired")).to_contain_text("may show what is not there")
    expect(page.get_by_label("Slice").first).to_have_value("12")

    wipe = page.locator("#repaired [data-wipe] input")
    wipe.fill("20")
    first = images.first.get_attribute("src")
    page.get_by_role("radio", name="what was changed").check()
    expect(images.first).not_to_have_attribute("src", first or "")
    expect(wipe).to_have_value("20")  # where the reader left it
    changed = images.first.get_attribute("src")
    page.locator("input[type=number][aria-label*=Strength]").fill("0.2")
    expect(images.first).not_to_have_attribute("src", changed or "")

    page.locator("#worklist button").last.click()  # another study: nothing of this one stays
    expect(images).to_have_count(0)


def test_a_record_is_dropped_next_to_the_images(watched: Watched, tmp_path: Path):
    from playwright.sync_api import expect

    truth = next(one for one in map(patient_truth, range(20)) if one["history"])
    record, about = make_bundle(truth, version="R4")
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    page = watched.page
    page.get_by_role("button", name="Record, earlier study, details").click()
    page.set_input_files("#record input[type=file]", file)
    expect(page.locator("#record .file-preview")).to_be_visible()
    page.get_by_label("When the study began, if the record does not say").fill(about["started"])
    read(page, head_file(tmp_path / "sub-9_T1w.nii.gz", 8.0))
    for name in truth["history"]:
        expect(page.locator("#report")).to_contain_text(re.compile(name.replace("_", " "), re.IGNORECASE))
    expect(page.locator("table.findings")).to_contain_text(truth["history"][0].replace("_", " "))

    file.write_text("{")
    page.locator("#record").get_by_label("Clear").click()
    page.set_input_files("#record input[type=file]", file)
    expect(page.locator("#record .file-preview")).to_be_visible()
    page.get_by_role("button", name="Read the study").click()
    expect(page.locator(".toast-body")).to_contain_text("was not taken")


def test_who_cancels_goes_on_working(watched: Watched, tmp_path: Path):
    from playwright.sync_api import expect

    page = watched.page
    page.get_by_role("button", name="A normal head").click()  # takes seconds to make
    expect(page.locator("#progress [role=status]")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".toast-body")).to_contain_text("nothing was kept", timeout=180_000)
    expect(page.locator("#progress [role=status]")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(page.locator("#head h2")).to_have_count(0)

    read(page, head_file(tmp_path / "sub-10_T1w.nii.gz", 8.0))
    expect(page.locator("#worklist [aria-current]")).to_have_count(1)
    expect(page.locator("#worklist button", has_text="example-normal")).to_have_count(0)
