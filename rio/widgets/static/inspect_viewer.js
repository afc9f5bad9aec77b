// Ground truth beside predictions: one image, two panels of SVG over it. Text from data files enters by textContent
// only. Objects are drawn once a scene; a resize only places the labels again.

const SVG = "http://www.w3.org/2000/svg";
const STEPS = { ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1, n: 1, p: -1, PageDown: 10, PageUp: -10 };

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

function drawObject(object, panel, scene, select) {
  const color = scene.colors[object.group];
  const group = make("svg:g", {
    class: `rio-object${object.focus ? " rio-focus" : ""}${panel.focused && !object.focus ? " rio-dim" : ""}`,
  });
  group.style.setProperty("--rio-color", color);
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

function placeLabels(svg, panel, scene) {
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
    tag.append(make("svg:rect", { x: left, y: top, width: w, height: h, rx: 3 * unit, fill: scene.colors[object.group] }));
    tag.append(make("svg:text", {
      x: left + 4 * unit, y: top + 11.2 * unit, "font-size": size, fill: scene.inks[object.group],
    }, object.label));
    layer.append(tag);
  }
  svg.append(layer);
}

function render({ model, el }) {
  const root = make("div", {
    class: "rio-viewer", tabindex: "0", role: "group", "data-lm-suppress-shortcuts": "true",
    "aria-label": "Image viewer: left and right arrow keys step through the list",
  });
  el.append(root);
  let url = null;
  let drawn = [];

  function draw() {
    const scene = model.get("scene");
    root.replaceChildren();
    drawn = [];
    if (!scene || !scene.panels) return;
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
      for (const object of objects) svg.append(drawObject(object, panel, scene, select));
      if (panel.ghost) { // where the object in question is, in the panel that lacks it
        const [x, y, width, height] = panel.ghost;
        svg.append(make("svg:rect", { x, y, width, height, class: "rio-ghost rio-under" }));
        svg.append(make("svg:rect", { x, y, width, height, class: "rio-ghost" }));
      }
      figure.append(caption, svg);
      root.append(figure);
      drawn.push([svg, panel, scene]);
    }
    place();
  }

  function place() {
    for (const [svg, panel, scene] of drawn) placeLabels(svg, panel, scene);
  }

  root.addEventListener("keydown", (event) => {
    const by = STEPS[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    model.send({ step: by });
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
  return () => {
    observer.disconnect();
    model.off("change:scene", later);
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
