// Categories: the tail, images against objects, a searchable table with thumbnails, and what one category looks like.
// Python sends the columns once; thumbnails come by message, for rows that are in sight.
export default {
  render({ model, el }) {
    const data = model.get("categories"), count = data.name.length;
    const state = { mode: "tail", query: "", groups: new Set(["r", "c", "f"]), by: "image_count", down: true };
    const order = [...data.name.keys()].sort((a, b) => data.image_count[b] - data.image_count[a] || a - b);
    const rank = new Array(count);
    order.forEach((i, at) => { rank[i] = at; });
    const MODES = [["tail", "The tail"], ["objects", "Objects against images"], ["side", "Size against images"]];
    const COLUMNS = [["name", "category"], ["frequency", "group"], ["image_count", "images"], ["instance_count", "objects"],
      ["per_image", "objects an image"], ["side", "median side, % of image's"]];

    el.classList.add("rio-view", "rio-explorer");
    const box = element("div", { class: "rio-box" });
    const detail = element("div", { class: "rio-detail" });
    const body = element("tbody");
    const head = element("tr");
    const hits = element("span", { class: "rio-quiet rio-hits" });
    const search = element("input", { type: "search", placeholder: "Search categories", "aria-label": "Search categories",
      oninput: (event) => { state.query = event.target.value.trim().toLowerCase(); list(); draw(); } });
    const modes = element("div", { class: "rio-segments", role: "group" }, ...MODES.map(([mode, label]) =>
      element("button", { type: "button", "data-mode": mode, onclick: () => { state.mode = mode; draw(); } }, label)));
    const chips = element("div", { class: "rio-segments rio-chips", role: "group" }, ...["r", "c", "f"].map((g) =>
      element("button", { type: "button", class: "on", "data-group": g, "aria-pressed": "true", onclick: (event) => {
        state.groups.has(g) ? state.groups.delete(g) : state.groups.add(g);
        event.currentTarget.classList.toggle("on", state.groups.has(g));
        event.currentTarget.setAttribute("aria-pressed", String(state.groups.has(g)));
        list(); draw();
      } }, element("i", { class: `rio-dot ${g}` }), GROUP_NAMES[g])));
    const scroll = element("div", { class: "rio-scroll", tabindex: "0", "data-lm-suppress-shortcuts": "true" },
      element("table", { class: "rio-table" }, element("thead", {}, head), body));
    el.append(element("div", { class: "rio-bar" }, modes, chips, search, hits),
      element("div", { class: "rio-top" }, box, detail), scroll);

    const crops = new Map(), wanted = new Set(), rows = new Map();
    let chart = null, asking = 0, partners = null;
    const matches = (i) => state.groups.has(data.frequency[i]) && (!state.query || data.name[i].toLowerCase().includes(state.query)
      || String(data.category_id[i]) === state.query);

    function draw() {
      for (const button of modes.children) button.classList.toggle("on", button.dataset.mode === state.mode);
      const some = order.filter(matches), all = order.map((i) => i);
      const max = (values, least) => Math.max(...values.filter((v) => v !== null), least);
      const spec = { height: 270, names: data.name, title: "categories" };
      const groups = data.frequency;
      const pick = (values, at) => values.map((v, i) => (matches(i) ? v : null));
      if (state.mode === "tail") {
        spec.x = { domain: [-0.8, count - 0.2], ticks: false, label: `${count.toLocaleString("en-US")} categories, from most to least frequent` };
        spec.y = { domain: [0.7, max(data.image_count, 10) * 1.5], scale: "log", label: "images" };
        spec.series = [{ kind: "bars", x: rank, y: pick(data.image_count), groups }];
        if (some.length < all.length) spec.series.push({ kind: "bars", x: rank, y: data.image_count, groups, dim: true });
      } else {
        const values = state.mode === "objects" ? data.instance_count : data.side;
        const seen = data.image_count.map((v, i) => (v > 0 && matches(i) ? v : null));
        const sizes = values.filter((v) => v !== null && v > 0);
        spec.x = { domain: [0.8, max(data.image_count, 10) * 1.5], scale: "log", grid: true, label: "images with the category" };
        spec.y = state.mode === "objects"
          ? { domain: [0.8, max(values, 10) * 1.6], scale: "log", label: "objects" }
          : { domain: [Math.min(...sizes) * 0.7, Math.min(Math.max(...sizes) * 1.4, 100)], scale: "log", label: "median side, % of the image's" };
        spec.diagonal = state.mode === "objects";
        spec.series = [{ kind: "points", x: seen, y: values.map((v) => (v > 0 ? v : null)), groups }];
      }
      chart = drawChart(box, spec, {
        selected: model.get("selected"), selectedLabel: true, onSelect: choose,
        onHover: (i) => [
          element("div", { class: "rio-quiet" }, element("i", { class: `rio-dot ${groups[i]}` }), GROUP_NAMES[groups[i]]),
          tipRow("images", shown(data.image_count[i])), tipRow("objects", shown(data.instance_count[i])),
          tipRow("median side", data.side[i] === null ? "–" : `${shown(data.side[i])} % of the image's`)],
      });
    }

    function header() {
      head.replaceChildren(...COLUMNS.map(([key, label]) => element("th", { scope: "col", class: key === "name" || key === "frequency" ? "" : "rio-number",
        "aria-sort": state.by === key ? (state.down ? "descending" : "ascending") : undefined },
        element("button", { type: "button", onclick: () => {
          state.down = state.by === key ? !state.down : key !== "name";
          state.by = key; header(); list();
        } }, label, state.by === key ? (state.down ? " ↓" : " ↑") : ""))), element("th", { scope: "col" }, data.pictures ? "objects, cut from their images" : ""));
    }

    const sight = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) {
        const i = Number(entry.target.dataset.i);
        if (!crops.has(i)) wanted.add(i);
      }
      if (wanted.size) { clearTimeout(asking); asking = setTimeout(ask, 60); }
    }, { root: scroll, rootMargin: "120px" });

    function ask() {
      const classes = [...wanted].slice(0, 24);
      if (!classes.length || !data.pictures) return;
      classes.forEach((i) => { wanted.delete(i); crops.set(i, null); });
      model.send({ kind: "crops", classes });
      if (wanted.size) asking = setTimeout(ask, 30);
    }

    function row(i) {
      if (rows.has(i)) return rows.get(i);
      const node = element("tr", { "data-i": i, onclick: () => choose(i) },
        element("td", { class: "rio-label" }, data.name[i]),
        element("td", {}, element("i", { class: `rio-dot ${data.frequency[i]}` }), GROUP_NAMES[data.frequency[i]]),
        ...["image_count", "instance_count", "per_image", "side"].map((key) => element("td", { class: "rio-number" }, shown(data[key][i]))),
        element("td", { class: "rio-thumbs" }));
      rows.set(i, node);
      return node;
    }

    function list() {
      const value = data[state.by], text = typeof value[0] === "string";
      const key = state.by === "frequency" ? (i) => "rcf".indexOf(value[i]) : (i) => value[i];
      const shownRows = [...data.name.keys()].filter(matches).sort((a, b) => {
        const u = key(a), v = key(b);
        const d = u === null ? -1 : v === null ? 1 : text && state.by === "name" ? u.localeCompare(v) : u - v;
        return (state.down ? -d : d) || a - b;
      });
      state.shown = shownRows;
      sight.disconnect();
      body.replaceChildren(...shownRows.map(row));
      if (!shownRows.length) body.append(element("tr", {}, element("td", { colspan: 7, class: "rio-quiet" }, "No category matches.")));
      shownRows.forEach((i) => { if (!crops.get(i)) sight.observe(rows.get(i)); });
      hits.textContent = shownRows.length === count ? `${count.toLocaleString("en-US")} categories` : `${shownRows.length.toLocaleString("en-US")} of ${count.toLocaleString("en-US")}`;
    }

    function show(i) {
      for (const node of body.querySelectorAll("tr.on")) node.classList.remove("on");
      if (chart) chart.select(i);
      if (i === null || i === undefined || i < 0) {
        detail.replaceChildren(element("div", { class: "rio-quiet" }, "Point at a bar to see its name; click one, or a row below, to see the category."));
        return;
      }
      rows.get(i)?.classList.add("on");
      const g = data.frequency[i];
      const facts = element("div", { class: "rio-quiet" }, element("i", { class: `rio-dot ${g}` }), `${GROUP_NAMES[g]} · `,
        `${shown(data.image_count[i])} image${data.image_count[i] === 1 ? "" : "s"} · ${shown(data.instance_count[i])} object${data.instance_count[i] === 1 ? "" : "s"}`);
      const parts = [element("h4", {}, data.name[i]), facts];
      if (partners && partners.index === i) {
        parts.push(element("div", { class: "rio-grid-thumbs" }, ...partners.crops.map(picture)));
        if (partners.names.length) {
          parts.push(element("div", { class: "rio-caption" }, "shares its images with"));
          partners.names.forEach((name, at) => parts.push(element("div", { class: "rio-partner" },
            element("span", { class: "rio-partner-name" }, name), element("span", { class: "rio-partner-bar" },
              element("i", { style: `width:${(100 * partners.shares[at]).toFixed(1)}%;background:var(--${partners.groups[at]})` })),
            element("span", { class: "rio-number" }, `${Math.round(100 * partners.shares[at])}%`))));
        } else parts.push(element("div", { class: "rio-caption" }, data.image_count[i] ? "alone in its images" : "no image of this file holds it"));
      }
      detail.replaceChildren(...parts);
    }

    function choose(i) {
      model.set("selected", i);
      model.save_changes();
    }

    function picture(uri) { return element("img", { src: uri, alt: "", loading: "lazy", draggable: "false" }); }

    const changed = () => {
      const i = model.get("selected");
      show(i);
      if (i >= 0) {
        model.send({ kind: "detail", index: i });
        const node = rows.get(i);
        if (node && node.isConnected) {
          const area = scroll.getBoundingClientRect(), own = node.getBoundingClientRect();
          if (own.top < area.top + 34 || own.bottom > area.bottom) scroll.scrollTop += own.top - area.top - area.height / 2;
        }
      }
    };
    const received = (message) => {
      if (message.kind === "crops") for (const [i, uris] of Object.entries(message.crops)) {
        crops.set(Number(i), uris);
        rows.get(Number(i))?.querySelector(".rio-thumbs").replaceChildren(...uris.map(picture));
      }
      if (message.kind === "detail") { partners = message; if (model.get("selected") === message.index) show(message.index); }
    };
    scroll.addEventListener("keydown", (event) => {
      const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!move || !state.shown.length) return;
      event.preventDefault();
      event.stopPropagation();
      const at = state.shown.indexOf(model.get("selected"));
      choose(state.shown[Math.min(Math.max(at + move, 0), state.shown.length - 1)]);
    });
    model.on("change:selected", changed);
    model.on("msg:custom", received);
    header();
    list();
    changed();
    const stop = onResize(box, draw);
    return () => { model.off("change:selected", changed); model.off("msg:custom", received); sight.disconnect(); stop(); };
  },
};
