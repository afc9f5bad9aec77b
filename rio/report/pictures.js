// Layers are CSS; only opacity and zoom need a script.
const seen = document.querySelector(".seen");
seen.querySelector("[type=range]")?.addEventListener("input", ({ target }) => seen.style.setProperty("--opacity", target.value / 100));
for (const picture of seen.querySelectorAll(".picture")) {
  const svgs = [...picture.querySelectorAll("svg")];
  if (!svgs.length) continue;
  const { width, height } = svgs[0].viewBox.baseVal;
  const zoom = zoomable(picture, () => ({ svgs, width, height }), (times) => picture.style.setProperty("--zoom", times));
  const does = { "+": () => zoom.zoomBy(1.5), "-": () => zoom.zoomBy(1 / 1.5), f: () => zoom.zoomBy(0) };
  svgs.forEach(zoom.pannable);
  picture.addEventListener("click", ({ target }) => (does[target.value] ?? (() => picture.focus({ preventScroll: true })))());
  picture.addEventListener("keydown", (event) => {
    if (does[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) does[event.key]();
  });
}
