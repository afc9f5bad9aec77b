// Ground truth beside predictions: one image, two panels of SVG over it. Text from data files enters by textContent
// only. Objects are drawn once a scene; a resize only places the labels again.

const SVG = "http://www.w3.org/2000/svg";
const STEPS = { ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1, n: 1, p: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 };

function make(tag, attributes = {}, text = null) {
  const node = tag.startsWith("svg:")
    ? document.createElementNS(SVG, tag.slice(4))
    : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function outline(object) {
  if (!object.polygons.length) return null;
  const d = object.polygons
    .map((flat) => {
      let path = "";
      for (let i = 0; i + 1 < flat.length; i += 2) path += `${i ? "L" : "M"}${flat[i]} ${flat[i + 1]}`;
      return path + "Z";
    })
    .join("");
  return make("svg:path", { d, "fill-rule": "evenodd" });
}

function drawObject(object, panel, color, select) {
  const group = make("svg:g", {
    class: `rio-object${object.focus ? " rio-focus" : ""}${panel.focused && !object.focus ? " rio-dim" : ""}`,
  });
  group.style.setProperty("--rio-color", color);
  group.dataset.verdict = object.verdict;
  const [x, y, w, h] = object.box;
  const shape = outline(object);
  if (object.focus) {
    group.append(make("svg:rect", { x, y, width: w, height: h, class: "rio-casing" }));
  }
  if (shape) {
    shape.classList.add("rio-mask");
    group.append(shape);
  }
  const box = make("svg:rect", { x, y, width: w, height: h, class: shape ? "rio-frame rio-thin" : "rio-frame" });
  group.append(box);
  group.append(make("svg:title", {}, object.hint));
  group.addEventListener("click", () => select(object.id));
  return group;
}

const measure = document.createElement("canvas").getContext("2d");

function placeLabels(svg, panel, scene, tone) {
  svg.querySelector(".rio-labels")?.remove();
  const scale = svg.getScreenCTM()?.a;
  if (!scale) return; // not on the page
  const unit = 1 / scale; // image pixels in one screen pixel
  const size = 11 * unit;
  const layer = make("svg:g", { class: "rio-labels" });
  measure.font = "600 11px system-ui, sans-serif";
  const taken = [];
  const order = panel.objects
    .map((object, i) => [object, i])
    .sort((a, b) => b[0].focus - a[0].focus || "rcf".indexOf(a[0].group) - "rcf".indexOf(b[0].group) || a[1] - b[1]);
  for (const [object] of order) {
    const w = (measure.measureText(object.label).width + 8) * unit;
    const h = 15 * unit;
    const [x, y, bw, bh] = object.box;
    const places = [[x, y - h], [x, y + bh], [x + bw - w, y - h], [x + bw - w, y + bh], [x, y], [x, y + bh - h]]
      .map(([left, top]) => [
        Math.min(Math.max(left, 0), Math.max(scene.width - w, 0)),
        Math.min(Math.max(top, 0), Math.max(scene.height - h, 0)),
      ]);
    const free = places.find(([left, top]) =>
      taken.every(([l, t, r, b]) => left >= r || left + w <= l || top >= b || top + h <= t));
    if (!free && !object.focus) continue; // no room: its name is in the hint
    const [left, top] = free ?? places[0];
    taken.push([left, top, left + w, top + h]);
    const tag = make("svg:g", { class: panel.focused && !object.focus ? "rio-tag rio-dim" : "rio-tag" });
    tag.append(make("svg:rect", { x: left, y: top, width: w, height: h, rx: 3 * unit, fill: scene.colors[tone(object)] }));
    tag.append(make("svg:text", {
      x: left + 4 * unit, y: top + 11.2 * unit, "font-size": size, fill: scene.inks[tone(object)],
    }, object.label));
    layer.append(tag);
  }
  svg.append(layer);
}

// Zoom, layers, opacity, and whether outlines say the group or right and wrong.
function makeTools(root, { zoomBy, toObject, recolor, link }) {
  const tools = make("div", { class: "rio-tools" });
  const button = (text, title, action) => {
    const node = make("button", { type: "button", title }, text);
    node.addEventListener("click", () => action(node));
    tools.append(node);
  };
  button("−", "zoom out (-)", () => zoomBy(1 / 1.5));
  button("+", "zoom in (+, or the wheel once the picture was clicked); drag to move", () => zoomBy(1.5));
  button("fit", "the whole image (f)", () => zoomBy(0));
  button("object", "zoom to the object in question (z)", toObject);
  const switched = (text, on, action) => {
    const label = make("label"), box = make("input", { type: "checkbox" });
    box.checked = on;
    box.addEventListener("change", () => action(box.checked));
    label.append(box, text);
    tools.append(label);
  };
  for (const layer of ["boxes", "masks", "labels"]) {
    switched(layer, true, (on) => root.classList.toggle(`rio-no-${layer}`, !on));
  }
  const opacity = make("input", { type: "range", min: 0, max: 100, value: 30, title: "opacity of the masks", "aria-label": "opacity of the masks" });
  opacity.addEventListener("input", () => root.style.setProperty("--rio-opacity", opacity.value / 100));
  tools.append(opacity);
  switched("right / wrong", false, recolor);
  button("copy link", "the address of this entry, for `make app`", link);
  return tools;
}

function render({ model, el }) {
  const root = make("div", {
    class: "rio-viewer", tabindex: "0", role: "group", "data-lm-suppress-shortcuts": "true",
    "aria-label": "Image viewer: left and right arrow keys step through the list",
  });
  el.append(root);
  let url = null;
  let drawn = [];
  // What is looked at, and how: it stays from entry to entry; the place stays as long as the image does.
  const look = { image: null, byVerdict: false };
  const zoom = zoomable(root, () => ({ ...model.get("scene"), svgs: drawn.map(([svg]) => svg) }), place);
  const tone = (object) => (look.byVerdict ? object.verdict : object.group);
  const tools = makeTools(root, { zoomBy: zoom.zoomBy, toObject, recolor: (on) => { look.byVerdict = on; draw(); }, link });

  function toObject() {
    const { panels } = model.get("scene");
    const object = (panels || []).flatMap((panel) => panel.objects).find((one) => one.focus);
    if (object) zoom.toBox(object.box);
  }

  function link() {
    navigator.clipboard?.writeText(`${location.href.split("#")[0]}#${model.get("scene").entry}`);
  }

  function drawGrid(scene) {
    const grid = make("div", { class: "rio-grid" });
    for (const crop of scene.grid) {
      const button = make("button", { type: "button", class: crop.at === scene.at ? "on" : "", title: crop.name });
      button.style.setProperty("--rio-color", scene.colors[crop.group]);
      button.append(make("img", { src: crop.uri, alt: "" }), make("span", {}, crop.name));
      if (crop.tag) button.append(make("em", {}, crop.tag));
      button.addEventListener("click", () => model.send({ show: crop.at }));
      grid.append(button);
    }
    root.append(grid);
  }

  function draw() {
    const scene = model.get("scene");
    root.style.minHeight = scene?.panels || scene?.grid ? "" : `${root.offsetHeight}px`; // an empty list moves nothing
    root.replaceChildren();
    drawn = [];
    if (scene?.grid) drawGrid(scene);
    if (!scene || !scene.panels) return;
    const panels = make("div", { class: "rio-panels" });
    root.append(panels, tools);
    if (look.image !== scene.image) { look.image = scene.image; zoom.look.zoom = 1; }
    if (url) URL.revokeObjectURL(url);
    const bytes = model.get("image");
    url = bytes && bytes.byteLength ? URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })) : null;
    for (const panel of scene.panels) {
      const figure = make("figure");
      const caption = make("figcaption");
      caption.append(make("b", {}, panel.title), make("span", {}, panel.note));
      const svg = make("svg:svg", { viewBox: `0 0 ${scene.width} ${scene.height}`, preserveAspectRatio: "xMidYMid meet" });
      if (url) {
        const image = make("svg:image", { width: scene.width, height: scene.height, preserveAspectRatio: "none" });
        image.setAttribute("href", url);
        svg.append(image);
      } else {
        svg.append(make("svg:rect", { width: scene.width, height: scene.height, class: "rio-noimage" }));
      }
      const objects = [...panel.objects].sort((a, b) => a.focus - b.focus || b.box[2] * b.box[3] - a.box[2] * a.box[3]);
      const select = (id) => model.send({ select: id, panel: panel.name });
      for (const object of objects) svg.append(drawObject(object, panel, scene.colors[tone(object)], select));
      zoom.pannable(svg);
      if (panel.ghost) { // where the object in question is, in the panel that lacks it
        const [x, y, width, height] = panel.ghost;
        svg.append(make("svg:rect", { x, y, width, height, class: "rio-ghost rio-under" }));
        svg.append(make("svg:rect", { x, y, width, height, class: "rio-ghost" }));
      }
      figure.append(caption, svg);
      panels.append(figure);
      drawn.push([svg, panel, scene]);
    }
    zoom.frame();
  }

  function place() {
    for (const [svg, panel, scene] of drawn) placeLabels(svg, panel, scene, tone);
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    const by = STEPS[event.key], actions = { "+": () => zoom.zoomBy(1.5), "-": () => zoom.zoomBy(1 / 1.5), f: () => zoom.zoomBy(0), z: toObject };
    if (by === undefined && !actions[event.key] && !/^\d$/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (by !== undefined) model.send({ step: by });
    else if (actions[event.key]) actions[event.key]();
    else model.send({ tag: Number(event.key) });
  });
  root.addEventListener("click", () => root.focus({ preventScroll: true }));
  const observer = new ResizeObserver(place);
  observer.observe(root);
  // The image comes with its scene; two events of one message draw once.
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      draw();
    });
  };
  model.on("change:scene", later);
  draw();
  const follow = () => { if (/^#(object|prediction)-\d+$/.test(location.hash)) model.send({ go: location.hash.slice(1) }); };
  window.addEventListener("hashchange", follow);
  follow();
  return () => {
    observer.disconnect();
    window.removeEventListener("hashchange", follow);
    model.off("change:scene", later);
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
