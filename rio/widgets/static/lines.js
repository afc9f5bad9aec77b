// A chart: `spec` comes from Python and is drawn again whenever it changes.
export default {
  render({ model, el }) {
    const box = element("div", { class: "rio-box" });
    const legend = element("div", { class: "rio-legend" });
    el.classList.add("rio-view");
    el.append(legend, box);
    const draw = () => {
      const spec = model.get("spec");
      if (!spec || !spec.series) return;
      legend.replaceChildren(...spec.series.filter((s) => s.legend !== false).map((s) =>
        element("span", {}, element("i", { class: { points: "rio-dot", bars: "rio-block" }[s.kind] || "rio-line", style: `${s.kind === "line" ? "border-top-color" : "background"}:${s.color};border-top-style:${s.dash ? "dashed" : "solid"}` }), s.name)));
      drawChart(box, spec, {
        onHover: (i) => [
          ...(spec.notes ? [element("div", { class: "rio-quiet" }, spec.notes[i])] : []),
          ...spec.series.filter((s) => s.tip !== false && s.y[i] !== null && s.y[i] !== undefined).map((s) => tipRow(s.name, shown(s.y[i]), s.groups ? `var(--${s.groups[i]})` : s.color)),
        ],
      });
    };
    model.on("change:spec", draw);
    const stop = onResize(box, draw);
    return () => { model.off("change:spec", draw); stop(); };
  },
};
