// Zoom and pan of SVGs over one image, in step: notebook 05 and the report. `now()` gives {svgs, width, height} of the
// image, `moved(zoom)` is called after each change. The wheel zooms once something in `root` was clicked.
function zoomable(root, now, moved) {
  const look = { zoom: 1, x: 0.5, y: 0.5 };

  function frame() {
    look.zoom = Math.min(Math.max(look.zoom, 1), 40);
    const half = 0.5 / look.zoom, { svgs, width, height } = now();
    look.x = Math.min(Math.max(look.x, half), 1 - half);
    look.y = Math.min(Math.max(look.y, half), 1 - half);
    for (const svg of svgs) {
      svg.setAttribute("viewBox", `${(look.x - half) * width} ${(look.y - half) * height} ${width / look.zoom} ${height / look.zoom}`);
      svg.style.touchAction = look.zoom > 1 ? "none" : ""; // a finger moves the image, or the page
    }
    moved(look.zoom);
  }

  function zoomBy(factor, at = null) { // 0: the whole image; `at`: the point that stays where it is, 0..1
    const before = look.zoom;
    look.zoom = factor === 0 ? 1 : Math.min(Math.max(before * factor, 1), 40);
    if (at) ["x", "y"].forEach((axis, i) => { look[axis] = at[i] + (look[axis] - at[i]) * (before / look.zoom); });
    frame();
  }

  function toBox([x, y, w, h]) {
    const { width, height } = now();
    Object.assign(look, { x: (x + w / 2) / width, y: (y + h / 2) / height, zoom: 0.4 / Math.max(w / width, h / height, 0.01) });
    frame();
  }

  const whereIn = (svg, event) => { // 0..1 of the image
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const { width, height } = now();
    return [point.x / width, point.y / height];
  };

  function pannable(svg) {
    let start = null;
    svg.addEventListener("wheel", (event) => {
      if (!root.contains(document.activeElement)) return; // the page scrolls until the picture was clicked
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 1.25 : 0.8, whereIn(svg, event));
    }, { passive: false });
    svg.addEventListener("pointerdown", (event) => { start = { at: whereIn(svg, event), from: [event.clientX, event.clientY], moved: false }; });
    svg.addEventListener("pointermove", (event) => {
      if (!start || !event.buttons) return;
      start.moved ||= Math.hypot(event.clientX - start.from[0], event.clientY - start.from[1]) > 4;
      if (!start.moved || look.zoom === 1) return;
      const now = whereIn(svg, event);
      look.x += start.at[0] - now[0];
      look.y += start.at[1] - now[1];
      frame();
    });
    svg.addEventListener("click", (event) => { if (start?.moved) event.stopPropagation(); start = null; }, true);
  }

  return { look, frame, zoomBy, toBox, pannable };
}
