"""A page that is a viewer and nothing else, for tests/serve/test_viewer.py: `python -m tests.serve.viewer_page FOLDER PORT`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from foundation.findings import Structure
from serve.viewer import gone, image_viewer, labels_of, refused, scene

LESION = Structure(value=2, name="plaque </li><b>", paired=False)
HALVES = (Structure(value=300, name="front half", paired=False), Structure(value=7, name="back half", paired=False))


def page(folder: Path) -> gr.Blocks:
    gr.set_static_paths([folder])

    def address(name: str) -> str:
        return f"/gradio_api/file={folder / name}"

    masks = [{"name": "masks/a.nii.gz", "title": "a", "url": address("mask.nii.gz"), "labels": labels_of([LESION])}]
    names = ("T1w", "<img src=x onerror=alert(1)>")
    series = [
        {"name": name, "contrast": "T1w", "url": address(file)}
        for name, file in zip(names, ("one.nii.gz", "two.nii.gz"))
    ]
    first = scene("1", series, masks, (0.0, 0.0, 0.0))
    halves = {"name": "masks/halves.nii.gz", "title": "halves", "url": address("halves.nii.gz"), "drawn_on": "halves 1"}
    mirrored = {"name": "T1w", "contrast": "T1w", "url": address("mirrored.nii.gz")}
    drawable = scene("2", [mirrored, series[0]], [halves | {"labels": labels_of(HALVES)}], (0.0, 0.0, 0.0))
    with gr.Blocks() as blocks:
        viewer = image_viewer()
        heard = gr.Textbox(elem_id="heard")
        shown = gr.State(first)

        def move(shown):
            shown = gone(shown, at_mm=(30.0, 10.0, -20.0), mask="masks/a.nii.gz")
            return shown, shown

        def take(shown, event: gr.EventData):
            shown = refused(shown, "Another time.")
            return f"{event.mask} on {event.drawn_on}: {event.path}", shown, shown

        gr.Button("show").click(lambda: first, None, viewer)
        gr.Button("move").click(move, shown, [shown, viewer])
        gr.Button("close").click(lambda: None, None, viewer)
        gr.Button("halves").click(lambda: (drawable, drawable), None, [shown, viewer])
        viewer.fallback(_why, None, heard)
        viewer.moved(_moved, None, heard)
        viewer.redrawn(take, shown, [heard, shown, viewer])
    return blocks


def _why(event: gr.EventData) -> str:
    return f"fallback: {event.why}"


def _moved(event: gr.EventData) -> str:
    return f"moved: {event.at_mm}"


if __name__ == "__main__":
    page(Path(sys.argv[1])).launch(server_port=int(sys.argv[2]), quiet=True, footer_links=[], run_history=False)
