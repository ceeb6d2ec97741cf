// The network: nested boxes, which unfold, are selected, and tell the panel.

function buildGraph(graph, parent) {
  const svg = draw("svg", { "aria-hidden": "true" });
  const columns = graph.columns.map((kind, number) => columnWidth(graph, kind, number)).join(" ");
  const element = make("div", { class: "graph", role: "group", style: `grid-template-columns: ${columns}` }, svg);
  graph.places = graph.boxes.map((box) => {
    const place = buildBox(box, parent);
    place.style.gridRow = `${box.rows[0] + 1} / ${box.rows[1] + 2}`;
    place.style.gridColumn = `${box.span[0] + 1} / ${box.span[1] + 2}`;
    element.append(place);
    return place;
  });
  graphs.push({ element, svg, graph });
  return element;
}

/** With many columns, as where all layers are joined, wires are narrow and without labels: the forks have the numbers. */
function many(graph) {
  return graph.columns.length > 3;
}

function columnWidth(graph, kind, number) {
  if (number === 0) return `minmax(${many(graph) ? "190px" : "0"}, 1fr)`;
  if (kind === "box") return many(graph) ? "130px" : "minmax(0, 0.75fr)";
  return many(graph) ? "26px" : "112px";
}

function buildBox(box, parent) {
  if (box.kind === "port") return make("div", { class: "port" });
  const head = make("div", { class: "head" }, headOf(box));
  const element = make(
    "div",
    {
      class: `${box.kind} ${box.category || ""}`,
      id: box.id,
      role: "treeitem",
      tabindex: "-1",
      "aria-selected": "false",
      "aria-label": spoken(box),
      "aria-expanded": box.kind === "group" ? "false" : null,
    },
    head,
  );
  boxes.set(box.id, { box, element, parent });
  head.addEventListener("click", () => {
    const folded = element.getAttribute("aria-expanded") === "false";
    if (box.kind === "group" && (selected === box.id || folded)) toggle(box.id);
    select(box.id);
  });
  if (box.kind === "group") register(box.graph, box.id);
  return element;
}

/** Notes the boxes of a graph that is not drawn yet, so that links and arrow keys find them. */
function register(graph, parent) {
  for (const box of graph.boxes) {
    if (box.kind !== "port") boxes.set(box.id, { box, element: null, parent });
    if (box.kind === "group") register(box.graph, box.id);
  }
}

function headOf(box) {
  if (box.kind === "fork") {
    return [make("div", { class: "muted" }, make("b", {}, `x is ${box.title}`), ": ∂L/∂x is a sum"), sumOf(box)];
  }
  const picture = box.photograph ? make("img", { src: box.photograph.src, alt: "" }) : null;
  return [
    picture,
    make("b", {}, box.title),
    make("span", { class: "detail" }, box.detail),
    make("span", { class: "right" }, rightOf(box)),
  ];
}

/** What stands at the right end of a box. */
function rightOf(box) {
  if (box.kind === "group") return `${box.ops.toLocaleString("en")} operations`;
  return (box.kind === "input" ? box.shape : box.scalar) || "";
}

/** The two or more contributions to a gradient and their sum, as bars with numbers. */
function sumOf(fork) {
  const largest = Math.max(...fork.paths.map((path) => path.norm || 0), fork.total.norm || 0) || 1;
  const row = (name, part, kind) => [
    make("span", { class: kind }, name),
    make("span", { class: `bar ${kind}`, style: `width: ${(100 * (part.norm || 0)) / largest}%` }),
    make("span", { class: `number gradient ${kind}` }, part.norm_text),
  ];
  return make(
    "div",
    { class: "sum" },
    ...fork.paths.flatMap((path) => row(path.unchanged ? "shortcut, unchanged" : `through ${path.to}`, path, "")),
    ...row("sum", fork.total, "total"),
  );
}

function spoken(box) {
  if (box.kind !== "fork") return [box.title, box.detail, box.shape].filter(Boolean).join(", ");
  const parts = box.paths.map((path) => `${path.norm_text} through ${path.to}`);
  return `${box.title}: gradient norms ${parts.join(" and ")}, together ${box.total.norm_text}`;
}

function toggle(id, open) {
  const { box, element } = boxes.get(id);
  if (box.kind !== "group" || !element) return;
  open = open === undefined ? element.getAttribute("aria-expanded") === "false" : open;
  element.setAttribute("aria-expanded", String(open));
  if (open && !element.querySelector(":scope > .graph")) element.append(buildGraph(box.graph, id));
  const inside = element.querySelector(":scope > .graph");
  if (inside) inside.hidden = !open;
  if (inside) inside.style.display = open ? "" : "none";
  redraw();
}

function toggleAll(open) {
  const ids = [...boxes.keys()];
  for (const id of ids) if (id !== page.network.id) toggle(id, open);
  if (!open && selected && !visible(boxes.get(selected).element)) select(outermost(selected));
}

/** Unfolds what is around a box, so that its element exists. */
function reveal(id) {
  const { parent } = boxes.get(id);
  if (parent && parent !== page.network.id) {
    reveal(parent);
    toggle(parent, true);
  }
}

function outermost(id) {
  const { parent } = boxes.get(id);
  return parent && parent !== page.network.id ? outermost(parent) : id;
}

function visible(element) {
  return element !== null && element.getClientRects().length > 0;
}
