"""The images in the page: NiiVue, vendored, in one component. `serve/static/viewer.js` is what runs in the browser.

    viewer = image_viewer()
    viewer.fallback(show_planes)      the browser cannot: the page then shows plain planes

A scene names volumes by address and holds none: they are small copies in 8 bits (`serve/cases.py`), and whoever may not
see the case gets none of them. Without a graphics processor 160 x 192 x 160 voxels take 1.8 s, a whole head at 1 mm 37 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from foundation.figures import colour_of
from foundation.findings import Structure

HERE = Path(__file__).parent
STATIC = HERE / "static"
BUNDLE = STATIC / "niivue.umd.js"  # @niivue/niivue 0.69.0, dist/niivue.umd.js as published

Scene = dict[str, Any]


def image_viewer(**options: Any) -> gr.HTML:
    """A component whose value is a scene or None. Its events: `redrawn` (a drawing is in the upload `path`, of a `case`'s `mask`,
    begun on the picture `drawn_on`); `fallback` (there is no WebGL2, with the reason in `why`), and then `moved` (to `at_mm`, under
    `mask`), because somebody has to draw the planes.

    No subclass of gr.HTML: gradio would write a stub file beside this module, wherever that was installed.
    """
    gr.set_static_paths([STATIC])  # the bundle is nobody's secret, and only scripts and styles lie there
    markup = (HERE / "templates" / "viewer.html").read_text(encoding="utf-8")
    return gr.HTML(
        # In the markup, because a component that was hidden at first is not told its other properties.
        html_template=markup.replace("BUNDLE", escape(BUNDLE.as_posix())),
        js_on_load=(STATIC / "viewer.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="viewer",
        **options,
    )


def scene(
    key: str,
    series: Sequence[Mapping[str, str]],
    masks: Sequence[Mapping[str, Any]],
    at_mm: Sequence[float],
) -> Scene:
    """What a viewer shows first; `key` is another for every scene, or the viewer takes it for the one that it has."""
    return {
        "key": key,
        "series": list(series),
        "masks": list(masks),
        "go": {"count": 0, "at_mm": [float(x) for x in at_mm]},
    }


def gone(shown: Scene, *, at_mm: Sequence[float] | None = None, mask: str | None = None) -> Scene:
    """The same scene, looked at elsewhere."""
    go: dict[str, Any] = {"count": shown["go"]["count"] + 1}
    if at_mm is not None:
        go["at_mm"] = [float(x) for x in at_mm]
    if mask is not None:
        go["mask"] = mask
    return {**shown, "go": go}


def refused(shown: Scene, why: str) -> Scene:
    """The same scene, whose drawing was not taken; it stays open."""
    return {**shown, "refused": {"count": shown.get("refused", {"count": 0})["count"] + 1, "why": why}}


def labels_of(structures: Sequence[Structure]) -> list[dict[str, Any]]:
    """What a mask's values mean, in the colours of every other picture."""
    return [{"value": one.value, "name": one.name, "colour": colour_of(one.value)} for one in structures]
