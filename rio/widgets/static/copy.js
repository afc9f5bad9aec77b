// Texts under tabs, to be copied.
export default {
  render({ model, el }) {
    const texts = Object.entries(model.get("texts"));
    let at = 0;
    const area = element("pre", { class: "rio-code", tabindex: "0" });
    const copied = element("button", { type: "button", class: "rio-copy", onclick: async () => {
      try {
        await navigator.clipboard.writeText(texts[at][1]);
      } catch {
        // Without the clipboard (a page that is not secure): select it, that Ctrl-C does the rest.
        getSelection().selectAllChildren(area);
        copied.textContent = "Press Ctrl-C";
        return;
      }
      copied.textContent = "Copied";
      setTimeout(() => { copied.textContent = "Copy"; }, 1500);
    } }, "Copy");
    const tabs = element("div", { class: "rio-segments" }, ...texts.map(([name], i) =>
      element("button", { type: "button", onclick: () => { at = i; show(); } }, name)));
    const show = () => {
      [...tabs.children].forEach((tab, i) => tab.classList.toggle("on", i === at));
      area.textContent = texts[at][1];
      copied.textContent = "Copy";
    };
    el.classList.add("rio-view");
    el.append(element("div", { class: "rio-bar" }, tabs, copied), area);
    show();
  },
};
