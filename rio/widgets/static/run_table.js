// Runs as rows: sorted by a column, ticked, moved by dragging or by the arrow keys, coloured.
export default {
  render({ model, el }) {
    let by = -1, down = true, dragged = null;
    const table = element("table", { class: "rio-table rio-runs" });
    el.classList.add("rio-view");
    el.append(element("div", { class: "rio-scroll" }, table));
    const set = (values) => {
      for (const [name, value] of Object.entries(values)) model.set(name, value);
      model.save_changes();
    };
    const tick = (arms, on) => set({ ticked: [...model.get("ticked").filter((arm) => !arms.includes(arm)), ...(on ? arms : [])] });
    const sort = (column) => {
      const rows = model.get("rows"), value = (arm) => rows[arm].values[column];
      down = by === column ? !down : typeof value(model.get("order")[0]) !== "string";
      by = column;
      const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : (a < b ? -1 : 1) * (down ? -1 : 1);
      set({ order: [...model.get("order")].sort((a, b) => compare(value(a), value(b))) });
    };
    const move = (arm, to) => {
      const order = model.get("order").filter((other) => other !== arm);
      order.splice(Math.max(to, 0), 0, arm);
      by = -1;
      set({ order });
    };
    const row = (arm, at) => {
      const { cells, values, note } = model.get("rows")[arm];
      return element("tr", { draggable: "true", title: note, "data-arm": arm, ondragstart: () => { dragged = arm; },
        ondragover: (event) => event.preventDefault(), ondrop: (event) => { event.preventDefault(); if (dragged) move(dragged, at); dragged = null; } },
      element("td", {}, element("button", { type: "button", class: "rio-handle", "aria-label": `move ${cells[0]}`, onkeydown: (event) => {
        const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        move(arm, at + by);
        table.querySelector(`[data-arm="${CSS.escape(arm)}"] .rio-handle`).focus();
      } }, "⠿")),
      element("td", {}, element("input", { type: "checkbox", "aria-label": `show ${cells[0]}`, checked: model.get("ticked").includes(arm),
        onchange: (event) => tick([arm], event.target.checked) })),
      element("td", {}, element("input", { type: "color", "aria-label": `colour of ${cells[0]}`, value: model.get("colors")[arm],
        onchange: (event) => set({ colors: { ...model.get("colors"), [arm]: event.target.value } }) })),
      ...cells.map((text, i) => element("td", { class: i === 0 ? "rio-label" : typeof values[i] === "string" ? "" : "rio-number" },
        text.startsWith("**") ? element("b", {}, text.slice(2, -2)) : text)));
    };
    const draw = () => {
      const order = model.get("order"), all = order.every((arm) => model.get("ticked").includes(arm));
      const { values } = model.get("rows")[order[0]];
      table.replaceChildren(element("thead", {}, element("tr", {}, element("th", {}), element("th", {},
        element("input", { type: "checkbox", "aria-label": "show all", checked: all, onchange: () => tick(order, !all) })), element("th", {}),
      ...model.get("columns").map(([name, full], i) => element("th", { class: typeof values[i] === "string" ? "" : "rio-number", title: full },
        element("button", { type: "button", onclick: () => sort(i) }, name + (i === by ? (down ? " ↓" : " ↑") : "")))))),
      element("tbody", {}, ...order.map(row)));
    };
    const events = "change:rows change:order change:ticked change:colors";
    model.on(events, draw);
    draw();
    return () => model.off(events, draw);
  },
};
