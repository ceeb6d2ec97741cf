// The keys, and the start.

function visibleItems() {
  return [...tree.querySelectorAll("[role=treeitem]")].filter(visible);
}

function goTo(element) {
  if (!element) return;
  select(element.id);
  element.focus({ preventScroll: true });
}

function onKey(event) {
  const item = event.target.closest("[role=treeitem]");
  if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
  const items = visibleItems(),
    at = items.indexOf(item),
    expanded = item.getAttribute("aria-expanded");
  const outside = item.parentElement.closest("[role=treeitem]");
  const actions = {
    ArrowDown: () => goTo(items[at + 1]),
    ArrowUp: () => goTo(items[at - 1]),
    Home: () => goTo(items[0]),
    End: () => goTo(items[items.length - 1]),
    ArrowRight: () => (expanded === "false" ? toggle(item.id, true) : expanded === "true" && goTo(items[at + 1])),
    ArrowLeft: () => (expanded === "true" ? toggle(item.id, false) : goTo(outside)),
    Enter: () => {
      select(item.id);
      if (expanded === null) panel.focus();
      else toggle(item.id);
    },
    " ": () => {
      select(item.id);
      toggle(item.id);
    },
    "*": () => (outside || tree).querySelectorAll("[role=treeitem]").forEach((other) => toggle(other.id, true)),
    Escape: overview,
  };
  if (!(event.key in actions)) return;
  event.preventDefault();
  actions[event.key]();
}

function followHash() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const found = wanted && [...boxes.values()].find(({ box }) => [box.id, box.name, box.layer].includes(wanted));
  if (found) {
    select(found.box.id);
    toggle(found.box.id, true);
  }
}

document.getElementById("facts").append(...page.head.map((fact) => make("span", {}, fact)));
register(page.network.graph, page.network.id);
tree.append(buildGraph(page.network.graph, page.network.id));
tree.firstElementChild.setAttribute("role", "none");
tree.querySelector("[role=treeitem]").setAttribute("tabindex", "0");
tree.addEventListener("keydown", onKey);
panel.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && selected) {
    event.preventDefault();
    boxes.get(selected).element.focus();
  }
});
document.getElementById("unfold").addEventListener("click", () => toggleAll(true));
document.getElementById("fold").addEventListener("click", () => toggleAll(false));
document.getElementById("overview").addEventListener("click", overview);
// On paper the network keeps its width, as the arrows are drawn for it.
window.addEventListener("beforeprint", () => {
  tree.style.width = `${tree.offsetWidth}px`;
});
window.addEventListener("afterprint", () => {
  tree.style.width = "";
});
new ResizeObserver(redraw).observe(tree);
window.addEventListener("hashchange", followHash);
overview();
followHash();
redraw();
