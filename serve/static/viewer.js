// The images in the page: NiiVue, and around it what its user can change. The body of the `js_on_load` of serve/viewer.py, which has
// `element`, `props`, `trigger` and `watch`; the markup is serve/templates/viewer.html.
//
// `props.value` is a scene: {key, series: [{name, contrast, url}], masks: [{name, title, url, labels: [{value, name, colour}]}],
// go: {count, at_mm, mask, series}}. The report sends the same `go` as an event of the document, and no server is asked.

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
  const marked = location.values[1] && mask_now()?.labels.find((one) => one.value === Math.round(location.values[1].value));
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
  });
  nv.onLocationChange = located;
  nv.onIntensityChange = (volume) => { choose("low", volume.cal_min); choose("high", volume.cal_max); };
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

async function image(entry, is_mask) {
  if (!loaded.has(entry.url)) {
    const one = await window.niivue.NVImage.loadFromUrl({ url: entry.url, name: "volume.nii.gz", colormap: "gray" });
    if (is_mask) {
      const rgb = entry.labels.map((label) => label.colour.match(/\w\w/g).map((hex) => parseInt(hex, 16)));
      const [R, G, B] = [0, 1, 2].map((channel) => [0, ...rgb.map((colour) => colour[channel])]);
      one.setColormapLabel({
        R, G, B, A: R.map((_, index) => (index ? 255 : 0)), I: [0, ...entry.labels.map((label) => label.value)],
        labels: ["", ...entry.labels.map((label) => label.name)],
      });
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
  const mask = mask_now();
  say("Loading…");
  const base = await image(series, false);
  const over = mask ? await image(mask, true) : null;
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
    const mask = where.mask === undefined ? Number(chosen("mask")) : scene.masks.findIndex((one) => one.name === where.mask);
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
    scene = null;
    element.dataset.state = nv ? "empty" : element.dataset.state;
    if (nv) { nv.volumes = []; nv.drawScene(); }
    $(".viewer-where").textContent = "";
    choose_legend(null);
    return;
  }
  if (!scene || scene.key !== value.key) {
    scene = value;
    loaded.clear();
    options("series", scene.series.map((one, index) => [index, one.name === one.contrast ? one.name : `${one.name} (${one.contrast})`]));
    options("mask", [...scene.masks.map((one, index) => [index, one.title]), [-1, "none"]]);
    $("[data-of=mask]").hidden = $("[data-of=opacity]").hidden = !scene.masks.length;
    choose("low", 0);
    choose("high", 255);
    at = value.go.at_mm;
    then(show);
    count = value.go.count; // the first place needs no move
  }
  if (value.go.count !== count) go(value.go);
  count = value.go.count;
}

function listen() {
  const on = (name, kind, act) => $(`[name=${name}]`).addEventListener(kind, act);
  on("series", "change", () => then(show));
  on("mask", "change", () => then(show));
  on("opacity", "input", () => nv && nv.volumes.length > 1 && nv.setOpacity(1, Number(chosen("opacity"))));
  on("low", "input", apply_window);
  on("high", "input", apply_window);
  on("radiological", "change", (event) => nv && nv.setRadiologicalConvention(event.target.checked));
  $(".viewer-layout").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) lay_out(button.value);
  });
  $("canvas").addEventListener("keydown", (event) => {
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
