// The images in the page: NiiVue, and around it what its user can change. The body of the `js_on_load` of serve/viewer.py, which has
// `element`, `props`, `trigger` and `watch`; the markup is serve/templates/viewer.html.
//
// `props.value` is a scene: {key, case, locked, series: [{name, contrast, url}], masks: [{name, title, url, drawn_on, labels: [{value,
// name, colour}]}], go: {count, at_mm, mask, series}, refused: {count, why}}. The report sends the same `go` as an event of the
// document, and no server is asked. A drawing goes to Python as a file, with `drawn_on` of the mask that it was begun on; the answer
// is a scene of another key, or the reason in `refused`.

const $ = (selector) => element.querySelector(selector);
const LAYOUTS = { planes: 3, axial: 0, coronal: 1, sagittal: 2, volume: 4 }; // niivue.SLICE_TYPE
const WINDOWING = 9; // niivue.DRAG_MODE
const AXES = [["right", "left"], ["front", "back"], ["up", "down"]];
const STEPS = {
  ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1],
}; // axis and direction; right of the patient is on the left of the screen

let nv = null;
let scene = null;
let at = [0, 0, 0]; // patient millimetres
let count = 0; // of the moves that Python asked for
let busy = Promise.resolve(); // one after the other: two quick choices must not both load
const loaded = new Map(); // by address
let drawn = null; // while somebody draws: {mask, tool, strokes, keeping}
const unkept = new Map(); // drawings that another case came between, by the mask's address
let refusals = 0;

const UNDO = 64; // strokes; NiiVue keeps them run-length encoded

const say = (text) => { $(".viewer-message").textContent = text; };
const chosen = (name) => $(`[name=${name}]`).value;
const choose = (name, value) => { $(`[name=${name}]`).value = String(value); };
const then = (step) => { busy = busy.then(step).catch((error) => say(`The images could not be shown: ${error.message}`)); };

function fall_back(why) {
  element.dataset.state = "fallback";
  nv = null;
  trigger("fallback", { why });
}

function words(mm) {
  return mm.map((value, axis) => `${AXES[axis][value < 0 ? 1 : 0]} ${Math.abs(value).toFixed(0)} mm`).join(", ");
}

function mask_now() {
  return scene.masks[Number(chosen("mask"))]; // undefined for "none", which is -1
}

function located(location) {
  at = Array.from(location.mm).slice(0, 3);
  const marked = drawn ? drawn.mask.labels[nv.drawBitmap?.[voxel(location.vox)] - 1]
    : location.values[1] && mask_now()?.labels.find((one) => one.value === Math.round(location.values[1].value));
  $(".viewer-where").textContent = words(at) + (marked ? `: ${marked.name}` : "");
  element.dataset.at = at.map((value) => value.toFixed(1)).join(" ");
}

function script(source) {
  return new Promise((resolve, reject) => {
    const tag = Object.assign(document.createElement("script"), { src: source, onload: resolve });
    tag.onerror = () => reject(new Error("the viewer's own script did not arrive"));
    document.head.append(tag);
  });
}

async function start() {
  const trial = document.createElement("canvas").getContext("webgl2");
  if (!trial) return fall_back("this browser has no WebGL2");
  const info = trial.getExtension("WEBGL_debug_renderer_info");
  const slow = /swiftshader|llvmpipe|software/i.test(info ? trial.getParameter(info.UNMASKED_RENDERER_WEBGL) : "");
  trial.getExtension("WEBGL_lose_context")?.loseContext();
  // The bundle's address is made here, because only the browser knows under which path the page was mounted.
  if (!window.niivue) await script(`${window.gradio_config.root}/gradio_api/file=${$(".viewer").dataset.bundle}`);
  nv = new window.niivue.Niivue({
    isRadiologicalConvention: true, // else the patient's left is on the left
    multiplanarShowRender: slow ? 0 : 1, // without a graphics processor the volume is drawn only when it is asked for
    multiplanarPadPixels: 6,
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.95, 0.75, 0.2, 0.9],
    crosshairWidth: 0.8,
    crosshairWidthUnit: "mm", // a voxel of a thick series would hide what it points at
    fontSizeScaling: 0.3,
    dragMode: WINDOWING,
    dragAndDropEnabled: false,
    loadingText: "",
    logLevel: "error",
    isNearestInterpolation: false,
    maxDrawUndoBitmaps: UNDO,
  });
  nv.onLocationChange = located;
  nv.onIntensityChange = (volume) => { choose("low", volume.cal_min); choose("high", volume.cal_max); };
  nv.onDrawingChanged = (what) => drawn && count_strokes(what);
  mend_tools();
  const canvas = $("canvas");
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    fall_back("the browser took the graphics memory away; reload the page to try again");
  });
  // The wheel scrolls the page until the images are clicked: NiiVue takes it always, also with `scrollRequiresFocus`.
  canvas.parentElement.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) event.stopPropagation();
  }, { capture: true, passive: true });
  await nv.attachToCanvas(canvas);
  element.dataset.state = "empty";
}

function colours(labels, values) {
  const rgb = labels.map((label) => label.colour.match(/\w\w/g).map((hex) => parseInt(hex, 16)));
  const [R, G, B] = [0, 1, 2].map((channel) => [0, ...rgb.map((colour) => colour[channel])]);
  return { R, G, B, A: R.map((_, index) => (index ? 255 : 0)), I: [0, ...values], labels: ["", ...labels.map((one) => one.name)] };
}

async function image(entry, is_mask) {
  if (!loaded.has(entry.url)) {
    const one = await window.niivue.NVImage.loadFromUrl({ url: entry.url, name: "volume.nii.gz", colormap: "gray" });
    if (is_mask) {
      one.setColormapLabel(colours(entry.labels, entry.labels.map((label) => label.value)));
    } else {
      one.cal_min = 0;
      one.cal_max = 255;
    }
    loaded.set(entry.url, one);
  }
  return loaded.get(entry.url);
}

// What is chosen, on the canvas. Volumes that were shown before are still here, so a choice costs no request.
async function show() {
  if (!nv || !scene) return;
  const series = scene.series[Number(chosen("series"))];
  const mask = drawn ? drawn.mask : mask_now();
  say("Loading…");
  const base = await (drawn ? on_masks_grid(series) : image(series, false));
  const over = mask && !drawn ? await image(mask, true) : null;
  if (!nv) return; // the context went while they came
  nv.volumes = [];
  nv.addVolume(base);
  if (over) {
    over.opacity = Number(chosen("opacity"));
    nv.addVolume(over);
  }
  apply_window();
  choose_legend(mask);
  move(at);
  say("");
  element.dataset.state = "shown";
  element.dataset.series = series.name;
  element.dataset.mask = mask ? mask.name : "";
}

function move(mm) {
  at = mm;
  if (!nv || !nv.volumes.length) return;
  nv.scene.crosshairPos = nv.mm2frac(mm);
  nv.createOnLocationChange();
  nv.drawScene();
}

function apply_window() {
  if (!nv || !nv.volumes.length) return;
  const [base] = nv.volumes;
  base.cal_min = Math.min(Number(chosen("low")), Number(chosen("high")) - 1);
  base.cal_max = Number(chosen("high"));
  nv.updateGLVolume();
}

function choose_legend(mask) {
  $(".viewer-legend").replaceChildren(...(mask ? mask.labels : []).map((label) => {
    const item = document.createElement("li");
    const chip = document.createElement("i");
    chip.style.background = label.colour;
    item.append(chip, label.name);
    return item;
  }));
}

function options(name, entries) {
  $(`[name=${name}]`).replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

function go(where) {
  if (!scene || !where) return;
  if (element.dataset.state === "fallback") return trigger("moved", where);
  then(async () => {
    const stays = drawn || where.mask === undefined; // the mask that is drawn on stays until it is kept or thrown away
    const mask = stays ? Number(chosen("mask")) : scene.masks.findIndex((one) => one.name === where.mask);
    const series = where.series === undefined ? -1 : scene.series.findIndex((one) => one.name === where.series);
    const same = String(mask) === chosen("mask") && (series < 0 || String(series) === chosen("series"));
    choose("mask", mask);
    if (series >= 0) choose("series", series);
    if (where.at_mm) at = where.at_mm;
    if (same) move(at);
    else await show();
  });
}

function receive() {
  const value = props.value;
  if (!value || !value.series) {
    leave_drawing(true);
    scene = null;
    element.dataset.state = nv ? "empty" : element.dataset.state;
    if (nv) { nv.volumes = []; nv.drawScene(); }
    $(".viewer-where").textContent = "";
    choose_legend(null);
    return;
  }
  if (!scene || scene.key !== value.key) {
    const redrawn = scene && scene.case !== undefined && scene.case === value.case;
    const [series, mask] = [chosen("series"), chosen("mask")];
    leave_drawing(!redrawn);
    scene = value;
    const addresses = new Set([...scene.series, ...scene.masks].map((one) => one.url));
    for (const url of loaded.keys()) if (!url.split(" on ").every((one) => addresses.has(one))) loaded.delete(url);
    options("series", scene.series.map((one, index) => [index, one.name === one.contrast ? one.name : `${one.name} (${one.contrast})`]));
    options("mask", [...scene.masks.map((one, index) => [index, one.title]), [-1, "none"]]);
    $("[data-of=mask]").hidden = $("[data-of=opacity]").hidden = !scene.masks.length;
    if (redrawn) { // another picture of what is looked at
      choose("series", series);
      choose("mask", mask);
    } else {
      choose("low", 0);
      choose("high", 255);
      at = value.go.at_mm;
    }
    then(show);
    count = value.go.count; // the first place needs no move
  }
  scene = value;
  if (drawn && value.refused && value.refused.count !== refusals) {
    drawn.keeping = false;
    tell(value.refused.why);
  }
  refusals = value.refused ? value.refused.count : refusals;
  offer_drawing();
  if (value.go.count !== count) go(value.go);
  count = value.go.count;
}

// ------------------------------------------------------------------------------------------------ drawing

const tell = (text) => { $(".viewer-told").textContent = text; };
const voxel = ([x, y, z]) => { // of the bitmap, whose axes point to the right, the front and the top
  const [, width, height] = nv.back.dims;
  return Math.round(x) + width * (Math.round(y) + height * Math.round(z));
};

function offer_drawing() {
  const mask = scene && mask_now();
  $("[name=draw]").hidden = Boolean(drawn) || !mask?.drawn_on || scene.locked;
  $(".viewer-pens").hidden = !drawn;
  $("[name=mask]").disabled = Boolean(drawn);
  $(".viewer-stage").classList.toggle("viewer-drawing", Boolean(drawn));
  element.dataset.drawing = drawn ? drawn.tool : "";
  if (!drawn) return;
  element.dataset.strokes = drawn.strokes;
  $("[name=undo]").disabled = !drawn.strokes || drawn.keeping;
  $("[name=keep]").disabled = !drawn.changed || drawn.keeping || scene.locked;
  $("[name=keep]").title = scene.locked ? "The case is signed: amend it first" : "";
  for (const button of element.querySelectorAll(".viewer-tools button")) button.setAttribute("aria-pressed", String(button.value === drawn.tool));
}

function hold_pen() {
  if (!drawn) return;
  nv.opts.penSize = Number(chosen("size"));
  nv.setPenValue(drawn.tool === "eraser" ? 0 : Number(chosen("structure")) + 1, drawn.tool === "fill");
  offer_drawing();
}

function count_strokes(what) {
  if (what === "draw") {
    drawn.strokes = Math.min(drawn.strokes + 1, UNDO - 1);
    drawn.changed = true;
    tell("");
  } else if (what === "undo") drawn.strokes -= 1;
  offer_drawing();
}

// A pen draws on the voxels of what is shown, and a mask has those of the first series: any other is shown on them.
async function on_masks_grid(series) {
  const [first, other] = [await image(scene.series[0], false), await image(series, false)];
  if (first === other) return first;
  const key = `${series.url} on ${scene.series[0].url}`;
  if (!loaded.has(key)) {
    const one = first.clone();
    Object.assign(one, { name: "volume.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255, img: sampled(other, first) });
    loaded.set(key, one);
  }
  return loaded.get(key);
}

// The values of a volume at the voxels of another, in between where it lies in between, black where it does not reach.
function sampled(from, to) {
  const [r, s, t] = times(inverse(from.hdr.affine), to.hdr.affine);
  const [, nx, ny, nz] = to.hdr.dims, [, mx, my, mz] = from.hdr.dims, plane = mx * my;
  const found = new Uint8Array(nx * ny * nz), { img } = from;
  const dx = mx > 1 ? 1 : 0, dy = my > 1 ? mx : 0, dz = mz > 1 ? plane : 0;
  for (let z = 0, at = 0; z < nz; z += 1) {
    for (let y = 0; y < ny; y += 1) {
      for (let x = 0; x < nx; x += 1, at += 1) {
        const u = r[0] * x + r[1] * y + r[2] * z + r[3], v = s[0] * x + s[1] * y + s[2] * z + s[3];
        const w = t[0] * x + t[1] * y + t[2] * z + t[3];
        if (u < -0.5 || v < -0.5 || w < -0.5 || u > mx - 0.5 || v > my - 0.5 || w > mz - 0.5) continue;
        const i = Math.max(0, Math.min(mx - 2, Math.floor(u))), j = Math.max(0, Math.min(my - 2, Math.floor(v)));
        const k = Math.max(0, Math.min(mz - 2, Math.floor(w)));
        const a = Math.max(0, Math.min(1, u - i)), b = Math.max(0, Math.min(1, v - j)), c = Math.max(0, Math.min(1, w - k));
        const o = i + j * mx + k * plane;
        const low = (img[o] * (1 - a) + img[o + dx] * a) * (1 - b) + (img[o + dy] * (1 - a) + img[o + dy + dx] * a) * b;
        const p = o + dz;
        const high = (img[p] * (1 - a) + img[p + dx] * a) * (1 - b) + (img[p + dy] * (1 - a) + img[p + dy + dx] * a) * b;
        found[at] = Math.round(low * (1 - c) + high * c);
      }
    }
  }
  return found;
}

const times = (a, b) => a.map((row) => b[0].map((_, column) => row.reduce((sum, value, n) => sum + value * b[n][column], 0)));

function inverse(affine) { // of a 4 x 4 whose last row is 0 0 0 1
  const [[a, b, c, p], [d, e, f, q], [g, h, i, r]] = affine;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const turned = [
    [e * i - f * h, c * h - b * i, b * f - c * e], [f * g - d * i, a * i - c * g, c * d - a * f], [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / det));
  return [...turned.map(([x, y, z]) => [x, y, z, -(x * p + y * q + z * r)]), [0, 0, 0, 1]];
}

// NiiVue's eraser takes every label under it. What was of another structure is put back at once.
function mend_tools() {
  const { drawPt, drawPenLine, drawPenFilled } = nv;
  const guarded = (corners, draw) => {
    if (nv.opts.penValue !== 0) return draw();
    const half = Math.floor(nv.opts.penSize / 2), { dims } = nv.back, kept = Number(chosen("structure")) + 1;
    const [first, last] = [Math.min, Math.max].map((end, side) => [0, 1, 2].map((axis) =>
      Math.min(Math.max(end(...corners.map((one) => one[axis])) + (side ? half : -half), 0), dims[axis + 1] - 1)));
    const others = [];
    for (let z = first[2]; z <= last[2]; z += 1) {
      for (let y = first[1]; y <= last[1]; y += 1) {
        for (let x = first[0], at = voxel([x, y, z]); x <= last[0]; x += 1, at += 1) {
          if (nv.drawBitmap[at] && nv.drawBitmap[at] !== kept) others.push([at, nv.drawBitmap[at]]);
        }
      }
    }
    draw();
    for (const [at, value] of others) nv.drawBitmap[at] = value;
  };
  nv.drawPt = (x, y, z, ...more) => guarded([[x, y, z]], () => drawPt.call(nv, x, y, z, ...more));
  nv.drawPenLine = (from, to, ...more) => guarded([from, to], () => drawPenLine.call(nv, from, to, ...more));
  nv.drawPenFilled = () => { // an outline of one point is a dot: it too can be undone
    const is_dot = nv.drawPenFillPts.length < 2;
    drawPenFilled.call(nv);
    if (!is_dot) return;
    nv.drawAddUndoBitmap();
    nv.onDrawingChanged("draw");
  };
}

async function begin_drawing() {
  const mask = mask_now();
  if (!nv || !mask?.drawn_on || scene.locked) return;
  const over = await image(mask, true);
  drawn = { mask, tool: "pen", strokes: 0, changed: false, keeping: false };
  options("structure", mask.labels.map((one, index) => [index, one.name]));
  tell("");
  await show();
  const place = new Map(mask.labels.map((one, index) => [one.value, index + 1]));
  const img = Uint8Array.from(over.img, (value) => place.get(Math.round(value)) || 0);
  const sizes = mask.labels.map(() => 0);
  for (const number of img) if (number) sizes[number - 1] += 1;
  choose("structure", sizes.indexOf(Math.max(...sizes))); // the largest, until somebody says which
  nv.setDrawColormap(colours(mask.labels, mask.labels.map((_, index) => index + 1)));
  nv.setDrawOpacity(Number(chosen("opacity")));
  if (!nv.loadDrawing({ hdr: over.hdr, permRAS: over.permRAS, img })) {
    leave_drawing(false);
    await show();
    throw new Error("the outlines are not on the voxels of their series");
  }
  if (unkept.has(mask.url)) {
    nv.drawBitmap = unkept.get(mask.url);
    unkept.delete(mask.url);
    nv.drawAddUndoBitmap();
    nv.refreshDrawing(true);
    Object.assign(drawn, { strokes: 1, changed: true });
    tell("This is what you drew before and did not keep.");
  }
  if (Object.keys(LAYOUTS).find((name) => LAYOUTS[name] === nv.opts.sliceType) === "volume") lay_out("planes");
  nv.setDrawingEnabled(true);
  hold_pen();
}

// Out of drawing; what was not kept is put aside if somebody may come back to it.
function leave_drawing(puts_aside) {
  if (!drawn) return;
  if (puts_aside && drawn.changed && !drawn.keeping) unkept.set(drawn.mask.url, nv.drawBitmap);
  drawn = null;
  if (nv) {
    nv.setDrawingEnabled(false);
    nv.closeDrawing();
  }
  offer_drawing();
}

async function keep_drawing() {
  if (!drawn || !drawn.changed || drawn.keeping) return;
  drawn.keeping = true;
  offer_drawing();
  tell("Measuring what you drew…");
  const of = scene.case, { mask } = drawn; // somebody may open another case before this one's has arrived
  try {
    const bytes = await nv.saveImage({ filename: "", isSaveDrawing: true, volumeByIndex: 0 });
    const packed = await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"))).blob();
    const { path } = await upload(new File([packed], "drawing.nii.gz"));
    trigger("redrawn", { path, case: of, mask: mask.name, drawn_on: mask.drawn_on });
  } catch (error) {
    if (!drawn) throw error;
    drawn.keeping = false;
    tell(`It was not kept: ${error.message}`);
    offer_drawing();
  }
}

function listen() {
  const on = (name, kind, act) => $(`[name=${name}]`).addEventListener(kind, act);
  on("series", "change", () => then(show));
  on("mask", "change", () => { offer_drawing(); then(show); });
  on("opacity", "input", () => {
    if (drawn) nv.setDrawOpacity(Number(chosen("opacity")));
    else if (nv && nv.volumes.length > 1) nv.setOpacity(1, Number(chosen("opacity")));
  });
  on("draw", "click", () => then(begin_drawing));
  on("undo", "click", () => drawn?.strokes && nv.drawUndo());
  on("keep", "click", () => then(keep_drawing));
  on("discard", "click", () => then(async () => { leave_drawing(false); await show(); }));
  on("structure", "change", hold_pen);
  on("size", "change", hold_pen);
  $(".viewer-tools").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || !drawn) return;
    drawn.tool = button.value;
    hold_pen();
  });
  window.addEventListener("beforeunload", (event) => {
    if (element.isConnected && (drawn?.changed || unkept.size)) event.preventDefault();
  });
  on("low", "input", apply_window);
  on("high", "input", apply_window);
  on("radiological", "change", (event) => nv && nv.setRadiologicalConvention(event.target.checked));
  $(".viewer-layout").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) lay_out(button.value);
  });
  $("canvas").addEventListener("keydown", (event) => {
    if (drawn?.strokes && event.key === "z" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      nv.drawUndo();
    }
    if (!nv || !nv.volumes.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const layout = Object.keys(LAYOUTS)[Number(event.key) - 1];
    if (layout) lay_out(layout);
    else if (STEPS[event.key] && Number(chosen("series")) >= 0) {
      const [axis, sign] = STEPS[event.key];
      const mirrored = axis === 0 && !$("[name=radiological]").checked ? -1 : 1;
      const mm = [...at];
      mm[axis] += sign * mirrored * (event.shiftKey ? 10 : step(axis));
      move(mm);
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
  document.addEventListener("larmor:go", (event) => element.isConnected && go(event.detail));
}

function step(axis) {
  const { pixDimsRAS } = nv.volumes[0];
  return pixDimsRAS[axis + 1];
}

function lay_out(name) {
  if (!nv) return;
  nv.setSliceType(LAYOUTS[name]);
  for (const button of element.querySelectorAll(".viewer-layout button")) button.setAttribute("aria-pressed", String(button.value === name));
}

listen();
watch("value", receive);
then(async () => {
  await start();
  if (props.value) receive();
});
