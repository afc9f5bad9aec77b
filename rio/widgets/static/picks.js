// Makes the figure beside it answer: what of it has words says them under the pointer, and is sent when it is clicked.
export default {
  render({ model, el }) {
    const tip = element("div", { class: "rio-tip", hidden: "" });
    let last = null, found = null;
    el.classList.add("rio-view", "rio-picks");
    el.append(tip);
    const picked = (event) => {
      const box = el.closest(".rio-shown");
      if (!box || !box.contains(event.target)) return null;
      if (event.target === last) return found;
      const group = event.target.closest('[id*="-pick-"]'), used = group ? group.querySelectorAll("use") : [];
      const index = group ? [...(used.length ? used : group.querySelectorAll("path"))].indexOf(event.target) : -1;
      const of = group && Number(group.id.split("-pick-")[1]);
      last = event.target;
      found = index >= 0 && model.get("words")[of]?.[index] ? { of, index } : null;
      last.classList.toggle("rio-pick", found !== null);
      return found;
    };
    const pointed = (event) => {
      const pick = picked(event);
      tip.hidden = !pick;
      if (!pick) return;
      tip.textContent = model.get("words")[pick.of][pick.index];
      const area = el.getBoundingClientRect(), left = event.clientX - area.left;
      tip.style.left = `${left + 18 + tip.offsetWidth > area.width ? left - 14 - tip.offsetWidth : left + 16}px`;
      tip.style.top = `${event.clientY - area.top - 12}px`;
    };
    const clicked = (event) => {
      const pick = picked(event);
      if (pick) model.send(pick);
    };
    document.addEventListener("pointermove", pointed);
    document.addEventListener("click", clicked);
    return () => {
      document.removeEventListener("pointermove", pointed);
      document.removeEventListener("click", clicked);
    };
  },
};
