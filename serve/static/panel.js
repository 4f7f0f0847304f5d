// What a click does in the report, the table and the worklist. The body of the `js_on_load` of serve/panels.py, which has `element` and
// `trigger`. `data-go` sends the viewer somewhere (serve/static/viewer.js listens), `data-event` asks Python, `data-edit` opens a
// sentence for writing. Everything that is shown came escaped from a template.

const EVENTS = ["decide", "open", "reword"];

function edit(button) {
  const sentence = button.closest(".sentence");
  if (sentence.querySelector("textarea")) return;
  const said = sentence.querySelector(".said");
  const text = sentence.querySelector(".said-text").textContent;
  const form = document.createElement("form");
  form.className = "rewording";
  const area = Object.assign(document.createElement("textarea"), { value: text, rows: 3, maxLength: 2000 });
  area.setAttribute("aria-label", "The sentence in your words");
  const save = Object.assign(document.createElement("button"), { type: "submit", textContent: "Save", className: "small" });
  const leave = Object.assign(document.createElement("button"), { type: "button", textContent: "Cancel", className: "small" });
  form.append(area, save, leave);
  const close = () => { form.remove(); said.hidden = button.hidden = false; button.focus(); };
  leave.addEventListener("click", close);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = area.value.trim();
    close();
    if (words && words !== text) trigger("reword", { index: Number(sentence.dataset.index), text: words });
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    event.stopPropagation();
  });
  said.hidden = button.hidden = true;
  sentence.append(form);
  area.focus();
}

element.addEventListener("click", (event) => {
  const target = event.target.closest("[data-go], [data-event], [data-edit]");
  if (!target || target.disabled) return;
  if (target.dataset.go) {
    document.dispatchEvent(new CustomEvent("larmor:go", { detail: JSON.parse(target.dataset.go) }));
    for (const other of document.querySelectorAll(".shown-now")) other.classList.remove("shown-now");
    target.closest(".sentence, tr")?.classList.add("shown-now");
  } else if (EVENTS.includes(target.dataset.event)) trigger(target.dataset.event, JSON.parse(target.dataset.detail));
  else if ("edit" in target.dataset) edit(target);
});

// A sentence is an anchor and no button, because a button does not break into lines.
element.addEventListener("keydown", (event) => {
  if ((event.key === "Enter" || event.key === " ") && event.target.matches("a[data-go]")) {
    event.preventDefault();
    event.target.click();
  }
});

let cut = null; // where the reader left the wipe: the next slice begins there

function wipe_to(figure) {
  figure.style.setProperty("--cut", `${cut}%`);
}

element.addEventListener("input", (event) => {
  const figure = event.target.closest("[data-wipe]");
  if (!figure) return;
  cut = event.target.value;
  wipe_to(figure);
});

new MutationObserver(() => {
  const figure = cut === null ? null : element.querySelector("[data-wipe]");
  if (!figure || figure.style.getPropertyValue("--cut")) return;
  figure.querySelector("input").value = cut;
  wipe_to(figure);
}).observe(element, { childList: true, subtree: true });
