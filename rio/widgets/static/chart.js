// A small SVG chart for the views: bars, lines and points over a linear or logarithmic axis, with hover and selection.
// Plain DOM, no library and no network. All text is set as textContent.

const GROUP_NAMES = { r: "rare", c: "common", f: "frequent" };

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  return fill(node, attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(node, attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shown(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en-US");
  if (size >= 10) return String(+value.toFixed(1));
  return String(+value.toPrecision(3));
}

function scale(axis, from, to) {
  const [low, high] = axis.domain;
  const at = axis.scale === "log" ? Math.log10 : (v) => v;
  const a = at(low), b = at(high);
  return (v) => from + ((at(v) - a) / (b - a || 1)) * (to - from);
}

function ticks(axis, most = 6) {
  const [low, high] = axis.domain;
  if (axis.scale === "log") {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) all.push(10 ** e);
    const within = (values) => values.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    let inside = within(all);
    for (const more of [[1, 3], [1, 2, 5]]) if (inside.length < 3) inside = within(all.flatMap((v) => more.map((m) => m * v)));
    while (inside.length > most) inside = inside.filter((_, i) => i % 2 === 0);
    if (inside.length > 2) return inside;
  }
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.9) || 1;
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(+v.toPrecision(12));
  return out;
}

// Draws `spec` into `box`. spec: {height, x: {label, domain, scale, ticks: false, marks: [{at, color, text}]}, y: {...}, diagonal,
//   series: [{name, kind: "bars"|"line"|"points", color, dash, x, y, low, high, groups, dim}], names: [...]}
// Index i of every series is the same thing (a category); `names[i]` names it. A value of null is left out.
// options: {selected, onHover(i) -> tooltip rows, onSelect(i)}. Returns {select(i)}.
function drawChart(box, spec, options = {}) {
  box.replaceChildren();
  box.drawnWidth = box.clientWidth;
  const width = Math.max(box.clientWidth || 720, 280), height = spec.height || 260;
  const left = 66, right = 14, top = 12, bottom = spec.x.label ? 40 : 24;
  const x = scale(spec.x, left, width - right), y = scale(spec.y, height - bottom, top);
  const root = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "rio-chart", role: "img",
    "aria-label": spec.title || spec.y.label || "chart" });
  for (const value of ticks(spec.y, 5)) {
    root.append(shape("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "rio-grid" }));
    root.append(text(shown(value), left - 8, y(value) + 4, "end"));
  }
  if (spec.x.ticks !== false) for (const value of ticks(spec.x, 8)) {
    if (spec.x.grid) root.append(shape("line", { x1: x(value), x2: x(value), y1: top, y2: height - bottom, class: "rio-grid" }));
    root.append(text(shown(value), x(value), height - bottom + 16, "middle"));
  }
  for (const { at, color, text: words } of spec.x.marks || []) {
    root.append(shape("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom, class: "rio-diagonal", style: `stroke:${color}` }));
    root.append(text(words, x(at) + 4, top + 9, "start"));
  }
  if (spec.x.label) root.append(text(spec.x.label, (left + width - right) / 2, height - 6, "middle"));
  if (spec.y.label) {
    const label = text(spec.y.label, 0, 0, "middle");
    label.setAttribute("transform", `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`);
    root.append(label);
  }
  if (spec.diagonal) {
    const a = Math.max(spec.x.domain[0], spec.y.domain[0]), b = Math.min(spec.x.domain[1], spec.y.domain[1]);
    root.append(shape("line", { x1: x(a), y1: y(a), x2: x(b), y2: y(b), class: "rio-diagonal" }));
  }
  const floor = y(spec.y.domain[0]);
  const count = Math.max(...spec.series.map((s) => s.x.length), 1);
  const step = (width - left - right) / count;
  for (const s of spec.series) {
    const there = (i) => s.y[i] !== null && s.y[i] !== undefined && s.x[i] !== null && s.x[i] !== undefined;
    const level = (i) => Math.min(Math.max(y(Math.max(s.y[i], spec.y.domain[0])), top), floor);
    const color = (i) => (s.groups ? `var(--${s.groups[i]})` : s.color);
    if (s.kind === "bars") {
      const w = Math.max(step * (count > 120 ? 1.02 : 0.78), 0.6);
      // One path a group: a thousand bars are three elements.
      const paths = {};
      for (let i = 0; i < s.x.length; i++) if (there(i)) {
        const c = color(i), h = Math.max(floor - level(i), 1);
        (paths[c] ||= []).push(`M${(x(s.x[i]) - w / 2).toFixed(2)} ${floor.toFixed(2)}v${(-h).toFixed(2)}h${w.toFixed(2)}v${h.toFixed(2)}z`);
      }
      for (const [c, d] of Object.entries(paths)) root.append(shape("path", { d: d.join(""), style: `fill:${c}`, opacity: s.dim ? 0.28 : 1 }));
    } else if (s.kind === "line") {
      if (s.low) { // a band
        const at = (values, i) => `${x(s.x[i]).toFixed(2)} ${Math.min(Math.max(y(Math.max(values[i], spec.y.domain[0])), top), floor).toFixed(2)}`;
        const own = s.x.map((_, i) => i).filter(there);
        const d = [...own.map((i) => at(s.high, i)), ...own.reverse().map((i) => at(s.low, i))].join("L");
        root.append(shape("path", { d: `M${d}Z`, style: `fill:${s.color}`, opacity: 0.14 }));
      }
      let d = "", pen = false;
      for (let i = 0; i < s.x.length; i++) {
        if (!there(i)) { pen = false; continue; }
        d += `${pen ? "L" : "M"}${x(s.x[i]).toFixed(2)} ${level(i).toFixed(2)}`;
        pen = true;
      }
      root.append(shape("path", { d, fill: "none", style: `stroke:${s.color}`, "stroke-width": s.width || 2, "stroke-linejoin": "round",
        "stroke-dasharray": s.dash }));
    } else {
      for (let i = 0; i < s.x.length; i++) if (there(i)) root.append(shape("circle", { cx: x(s.x[i]), cy: level(i),
        r: s.radius || (count > 300 ? 2.4 : 4.5), style: `fill:${color(i)}`, class: "rio-point", opacity: s.dim ? 0.25 : 0.85 }));
    }
  }
  const mark = shape("g", { class: "rio-mark" });
  root.append(mark);
  const tip = element("div", { class: "rio-tip", hidden: "" });
  box.append(root, tip);

  const nearest = (event) => {
    const area = root.getBoundingClientRect(), px = event.clientX - area.left, py = event.clientY - area.top;
    let best = -1, least = Infinity;
    for (const s of spec.series) for (let i = 0; i < s.x.length; i++) {
      if (s.y[i] === null || s.y[i] === undefined || s.x[i] === null) continue;
      const dx = x(s.x[i]) - px, dy = s.kind === "points" ? y(Math.max(s.y[i], spec.y.domain[0])) - py : 0;
      const d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return spec.series.some((s) => s.kind === "points") && least > 2500 ? -1 : best;
  };
  const place = (i) => {
    mark.replaceChildren();
    if (i === null || i === undefined || i < 0) return;
    const s = spec.series.find((o) => o.y[i] !== null && o.y[i] !== undefined);
    if (!s) return;
    if (s.kind === "points") mark.append(shape("circle", { cx: x(s.x[i]), cy: y(Math.max(s.y[i], spec.y.domain[0])), r: 8, class: "rio-ring" }));
    else {
      mark.append(shape("line", { x1: x(s.x[i]), x2: x(s.x[i]), y1: top, y2: floor, class: "rio-rule" }));
      for (const o of spec.series) if (o.y[i] !== null && o.y[i] !== undefined) mark.append(shape("circle", { cx: x(o.x[i]),
        cy: Math.min(Math.max(y(Math.max(o.y[i], spec.y.domain[0])), top), floor), r: 4, style: `fill:${o.groups ? `var(--${o.groups[i]})` : o.color}`, class: "rio-point" }));
    }
  };
  const name = (i) => {
    if (!options.selectedLabel || i === null || i === undefined || i < 0) return;
    const s = spec.series[0], at = x(s.x[i]), label = text(spec.names[i], at, top + 2, at > width / 2 ? "end" : "start");
    label.setAttribute("dx", at > width / 2 ? -7 : 7);
    label.setAttribute("class", "rio-name");
    mark.append(label);
  };
  let chosen = options.selected ?? -1;
  root.addEventListener("pointermove", (event) => {
    const i = nearest(event);
    tip.hidden = i < 0;
    place(i < 0 ? chosen : i);
    if (i < 0) { name(chosen); return; }
    tip.replaceChildren(element("b", {}, spec.names ? String(spec.names[i]) : ""), ...(options.onHover ? options.onHover(i) : []));
    const area = box.getBoundingClientRect(), px = event.clientX - area.left, py = event.clientY - area.top;
    const flip = px + 18 + tip.offsetWidth > box.clientWidth;
    tip.style.left = `${flip ? Math.max(px - 14 - tip.offsetWidth, 0) : px + 16}px`;
    tip.style.top = `${Math.max(Math.min(py - 12, height - tip.offsetHeight - 6), 0)}px`;
  });
  root.addEventListener("pointerleave", () => { tip.hidden = true; place(chosen); name(chosen); });
  root.addEventListener("click", (event) => { const i = nearest(event); if (i >= 0 && options.onSelect) options.onSelect(i); });
  place(chosen);
  name(chosen);
  return { select(i) { chosen = i ?? -1; place(chosen); name(chosen); } };

  function text(value, px, py, anchor) {
    return shape("text", { x: px, y: py, "text-anchor": anchor, class: "rio-tick" }, String(value));
  }
}

function tipRow(label, value, color) {
  return element("div", { class: "rio-tip-row" },
    element("span", {}, color ? element("i", { class: "rio-dot", style: `background:${color}` }) : null, label), element("span", {}, value));
}

// Draws again when the width is another than that of the last drawing: on resizing, and on coming into sight (JupyterLab
// takes cells out of the page while they are scrolled away, and nothing can be measured there).
function onResize(node, draw) {
  let frame = 0;
  const check = () => {
    if (!node.clientWidth || node.clientWidth === node.drawnWidth) return;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };
  const size = new ResizeObserver(check), sight = new IntersectionObserver(check);
  size.observe(node);
  sight.observe(node);
  return () => { size.disconnect(); sight.disconnect(); };
}
