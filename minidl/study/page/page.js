"use strict";
// Draws the network of the JSON document as nested boxes, and the panel of the box that is selected.

const page = JSON.parse(document.getElementById("document").textContent);
const tree = document.getElementById("tree");
const panel = document.getElementById("panel");
const boxes = new Map(); // id -> {box, element, parent}
const graphs = []; // {element, svg, graph}, drawn again whenever sizes change
let selected = null;

/** Makes an element: make("p", {class: "muted"}, "text", child). Attributes that are null are left out. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Makes an SVG element. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ---- the network -----------------------------------------------------------------------------------------------------

function buildGraph(graph, parent) {
  const svg = draw("svg", { "aria-hidden": "true" });
  const widths = graph.columns.map((kind, number) => (number === 0 ? `minmax(${many(graph) ? "190px" : "0"}, 1fr)` : columnWidth(graph, kind)));
  const element = make("div", { class: "graph", role: "group", style: `grid-template-columns: ${widths.join(" ")}` }, svg);
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

/** With many columns, as where all layers are joined, wires are narrow and have no labels: the forks have the numbers. */
function many(graph) {
  return graph.columns.length > 3;
}

function columnWidth(graph, kind) {
  if (kind === "box") return many(graph) ? "130px" : "minmax(0, 0.75fr)";
  return many(graph) ? "26px" : "112px";
}

function buildBox(box, parent) {
  if (box.kind === "port") return make("div", { class: "port" });
  const head = make("div", { class: "head" }, headOf(box));
  const element = make("div", {
    class: `${box.kind} ${box.category || ""}`, id: box.id, role: "treeitem", tabindex: "-1", "aria-selected": "false",
    "aria-label": spoken(box), "aria-expanded": box.kind === "group" ? "false" : null,
  }, head);
  boxes.set(box.id, { box, element, parent });
  head.addEventListener("click", () => {
    if (box.kind === "group" && (selected === box.id || element.getAttribute("aria-expanded") === "false")) toggle(box.id);
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
  const right = { group: `${(box.ops || 0).toLocaleString("en")} operations`, input: box.shape, op: box.scalar || "" }[box.kind] || "";
  return [picture, make("b", {}, box.title), make("span", { class: "detail" }, box.detail), make("span", { class: "right" }, right)];
}

/** The two or more contributions to a gradient and their sum, as bars with numbers. */
function sumOf(fork) {
  const largest = Math.max(...fork.paths.map((path) => path.norm || 0), fork.total.norm || 0) || 1;
  const row = (name, part, kind) => [
    make("span", { class: kind }, name),
    make("span", { class: `bar ${kind}`, style: `width: ${(100 * (part.norm || 0)) / largest}%` }),
    make("span", { class: `number gradient ${kind}` }, part.norm_text),
  ];
  return make("div", { class: "sum" },
    ...fork.paths.flatMap((path) => row(path.unchanged ? "shortcut, unchanged" : `through ${path.to}`, path, "")),
    ...row("sum", fork.total, "total"));
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

// ---- arrows ----------------------------------------------------------------------------------------------------------

const APART = 13; // pixels between an arrow of values and one of gradients
const norms = page.chart.norms.filter((norm) => norm > 0).map(Math.log);
const [lowest, highest] = norms.reduce(([low, high], norm) => [Math.min(low, norm), Math.max(high, norm)], [Infinity, -Infinity]);

function arrowWidth(norm) {
  if (!(norm > 0) || !(highest > lowest)) return 1.5;
  return 1 + 3.5 * Math.min(1, Math.max(0, (Math.log(norm) - lowest) / (highest - lowest)));
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const part of graphs) if (visible(part.element)) drawEdges(part);
  });
}

function drawEdges({ element, svg, graph }) {
  svg.replaceChildren();
  const frame = element.getBoundingClientRect();
  const style = getComputedStyle(element);
  const widths = style.gridTemplateColumns.split(" ").map(parseFloat);
  const gap = parseFloat(style.columnGap);
  const lefts = widths.map((_, number) => parseFloat(style.paddingLeft) + widths.slice(0, number).reduce((sum, width) => sum + width + gap, 0));
  // The arrows of a column run this far from its left edge: labels go to both sides of them.
  const spine = (column) => lefts[column] + (column === 0 ? Math.min(104, 0.38 * widths[0]) : graph.columns[column] === "wire" ? (many(graph) ? 6 : 16) : Math.min(84, 0.45 * widths[column]));
  for (const edge of graph.edges) {
    const [from, to] = edge.ends.map((number) => graph.boxes[number]);
    const [top, bottom] = edge.ends.map((number) => graph.places[number].getBoundingClientRect());
    const own = edge.wire !== null ? edge.wire : from.span[0] === to.span[0] ? from.span[0] : Math.max(from.span[0], to.span[0]);
    const within = (box) => (box.span[0] <= own && own <= box.span[1] ? spine(own) : spine(Math.min(Math.max(own, box.span[0]), box.span[1])));
    drawEdge(svg, edge, {
      x0: within(from), y0: top.bottom - frame.top, x: spine(own), x1: within(to), y1: bottom.top - frame.top,
      narrow: many(graph) && edge.wire !== null, first: own === 0 && edge.wire === null && widths[0] > 220,
    });
  }
}

function drawEdge(svg, edge, { x0, y0, x, x1, y1, first, narrow }) {
  const bend = Math.min(28, (y1 - y0) / 2);
  const path = (shift, tail, tip) =>
    `M ${x0 + shift} ${y0 + tail} C ${x0 + shift} ${y0 + bend}, ${x + shift} ${y0}, ${x + shift} ${y0 + bend} ` +
    `L ${x + shift} ${y1 - bend} C ${x + shift} ${y1}, ${x1 + shift} ${y1 - bend}, ${x1 + shift} ${y1 - tip}`;
  svg.append(draw("path", { class: "forward", "stroke-width": 1.5, d: path(0, 0, 6) }), tip("forward", x1, y1, 1, 4));
  const middle = y0 + bend + (y1 - bend - y0 - bend) / 2 + 4;
  if (first) svg.append(draw("text", { x: x - 8, y: middle, "text-anchor": "end" }, edge.shape));
  if (edge.norm_text === "none") return;
  const width = arrowWidth(edge.norm);
  svg.append(
    draw("path", { class: "gradient", "stroke-width": width, d: path(APART, 6, 0) }),
    tip("gradient", x0 + APART, y0, -1, 3 + width / 2),
  );
  if (narrow) return;
  svg.append(draw("text", { class: "gradient", x: x + APART + 7, y: middle }, edge.norm_text));
  if (edge.unchanged) svg.append(draw("text", { x: x + APART + 7, y: middle + 14 }, "unchanged"));
}

function tip(kind, x, y, direction, half) {
  return draw("path", { class: `tip ${kind}`, d: `M ${x} ${y} L ${x - half} ${y - 8 * direction} L ${x + half} ${y - 8 * direction} Z` });
}

// ---- the panel -------------------------------------------------------------------------------------------------------

function select(id) {
  if (selected && boxes.get(selected).element) {
    const before = boxes.get(selected).element;
    before.setAttribute("aria-selected", "false");
    before.setAttribute("tabindex", "-1");
  }
  selected = id;
  reveal(id);
  const { box, element } = boxes.get(id);
  element.setAttribute("aria-selected", "true");
  for (const item of tree.querySelectorAll('[tabindex="0"]')) item.setAttribute("tabindex", "-1");
  element.setAttribute("tabindex", "0");
  element.querySelector(".head").scrollIntoView({ block: "nearest" });
  const panels = { op: opPanel, group: groupPanel, fork: forkPanel, input: inputPanel, folded: foldedPanel };
  panel.replaceChildren(...panels[box.kind](box));
  panel.scrollTop = 0;
}

function overview() {
  if (selected && boxes.get(selected).element) boxes.get(selected).element.setAttribute("aria-selected", "false");
  selected = null;
  panel.replaceChildren(...overviewPanel());
  panel.scrollTop = 0;
}

function titleOf(title, detail) {
  const step = (by) => {
    const ops = [...boxes.values()].filter(({ box }) => box.kind !== "port");
    const next = ops[ops.findIndex(({ box }) => box.id === selected) + by];
    if (next) select(next.box.id);
  };
  const button = (text, label, by) => {
    const element = make("button", { type: "button", "aria-label": label }, text);
    element.addEventListener("click", () => step(by));
    return element;
  };
  return make("div", { class: "title" }, make("h2", {}, title), make("span", { class: "where" }, detail),
    make("span", { class: "buttons" }, button("‹", "Previous box", -1), button("›", "Next box", 1)));
}

function factsOf(rows) {
  return make("dl", { class: "facts" }, rows.filter(([, value]) => value).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function image(picture, alt) {
  if (!picture) return make("span", { class: "muted" }, "–");
  return make("img", { src: picture.src, alt, width: picture.width, height: picture.height, class: picture.height === 1 ? "vector" : "map" });
}

function scaleOf(picture) {
  if (!picture) return "";
  return make("span", { class: "muted" }, `−${picture.largest} `, make("span", { class: "scale" }), ` ${picture.largest}`);
}

function mapsOf(box) {
  const channels = box.value && box.value.channels;
  const title = channels ? `Channels ${channels.join(", ")} of the result, and the gradient of the loss with respect to them` : "The result, and the gradient of the loss with respect to it";
  if (!box.value && !box.grad) return [];
  return [make("h3", {}, title), make("div", { class: "maps" },
    make("span", { class: "forward" }, "y"), image(box.value, "values"), scaleOf(box.value),
    make("span", { class: "gradient" }, "∂L/∂y"), image(box.grad, "gradients"), scaleOf(box.grad))];
}

function opPanel(box) {
  const op = page.functions[box.function];
  return [
    titleOf(box.is_layer ? box.layer : op.name, box.is_layer ? op.name : whereOf(box)),
    factsOf([
      ["result", `${box.shape}, ${box.dtype}`], ...box.hyperparameters, ["norm of y", box.value_norm],
      ["norm of ∂L/∂y", box.grad_norm], ["multiply-adds", box.macs], ["forward", box.forward], ["backward", box.backward],
    ]),
    ...mapsOf(box),
    op.formula ? make("h3", {}, "Formula") : null,
    op.formula ? make("pre", { class: "formula" }, op.formula) : null,
    ...sourcesOf(op),
    make("h3", {}, "Inputs, and the gradients that go back to them"),
    inputsTable(box),
    box.saved.length ? make("h3", {}, "Saved for backward") : null,
    box.saved.length ? savedTable(box) : null,
  ].filter(Boolean);
}

function whereOf(box) {
  if (box.layer === null) return "the loss";
  return box.layer ? `in ${box.layer}` : "in the network's own forward";
}

/** Tabs, one for each level of the source: forward and backward side by side. */
function sourcesOf(op) {
  const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": "Source" });
  const body = make("div", { role: "tabpanel" });
  const show = (number) => {
    [...tabs.children].forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === number));
      tab.setAttribute("tabindex", index === number ? "0" : "-1");
    });
    body.replaceChildren(...levelOf(op.levels[number]));
  };
  op.levels.forEach((level, number) => {
    const tab = make("button", { type: "button", role: "tab" }, level.title);
    tab.addEventListener("click", () => show(number));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = step && tabs.children[number + step];
      if (next) { next.focus(); next.click(); }
    });
    tabs.append(tab);
  });
  show(0);
  return [tabs, body];
}

function levelOf(level) {
  const side = (title, keys) => make("div", {}, make("h4", {}, title), keys.map(quote));
  const helpers = level.helpers.length ? make("details", {}, make("summary", {}, `${level.helpers.length} functions that these call`),
    make("div", { class: "sides" }, halves(level.helpers).map((keys) => make("div", {}, keys.map(quote))))) : null;
  return [make("p", { class: "muted" }, level.words), make("div", { class: "sides" }, side("Forward", level.forward), side("Backward", level.backward)), helpers].filter(Boolean);
}

function halves(keys) {
  const middle = Math.ceil(keys.length / 2);
  return [keys.slice(0, middle), keys.slice(middle)];
}

function quote(key) {
  const { name, place, html } = page.quotes[key];
  const code = make("pre", { class: "source" });
  if (html === null) code.textContent = "The source is not available: the function has no file.";
  else code.innerHTML = html;
  return make("figure", { "data-name": name }, make("figcaption", { class: "mono" }, place || name), code);
}

function table(heads, rows) {
  const numeric = (index) => (heads[index].startsWith("#") ? "number" : null);
  return make("table", {}, make("thead", {}, make("tr", {}, heads.map((head, i) => make("th", { class: numeric(i), scope: "col" }, head.replace("#", ""))))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell, i) => make("td", { class: numeric(i) }, cell ?? ""))))));
}

function link(number, text) {
  const id = page.chart.boxes[number];
  if (!id) return text;
  const anchor = make("a", { href: `#${id}` }, text);
  anchor.addEventListener("click", (event) => { event.preventDefault(); select(id); });
  return anchor;
}

function inputsTable(box) {
  return table(["input", "from", "shape", "#norm of its gradient"], box.inputs.map((input) => [
    make("code", {}, input.name), "op" in input ? link(input.op, input.what) : input.what, input.shape, input.norm_text]));
}

function savedTable(box) {
  return table(["name", "shape or value", "dtype", "#bytes", "the same array as"], box.saved.map((saved) => [
    make("code", {}, saved.name), saved.shape || saved.value, saved.dtype, saved.bytes, saved.same]));
}

function groupPanel(box) {
  const inside = make("button", { type: "button" }, "Unfold or fold");
  inside.addEventListener("click", () => toggle(box.id));
  return [
    titleOf(box.name, box.detail), factsOf([["operations", String(box.ops)], ["parameters", box.parameters], ["multiply-adds", box.macs], ["result", box.shape]]),
    make("p", { class: "prose" }, inside),
    make("h3", {}, "How it calls its parts"), quote(box.quote),
    ...(box.last in page.chart.boxes ? mapsOf(boxes.get(page.chart.boxes[box.last]).box) : []),
  ];
}

function forkPanel(box) {
  const largest = Math.max(...box.paths.map((path) => path.norm || 0), box.total.norm || 0) || 1;
  const bar = (part, kind) => make("span", {}, make("span", { class: `bar ${kind}`, style: `display: block; width: ${(100 * (part.norm || 0)) / largest}%` }));
  const row = (name, part, kind) => [make("span", { class: kind }, name), bar(part, kind), make("span", { class: `gradient ${kind}` }, part.norm_text), image(part.picture, name)];
  return [
    titleOf(`A value that is ${box.title}: its gradient`, `x is the result of ${box.detail}`),
    ...forkWords(box),
    make("div", { class: "paths" },
      ...box.paths.flatMap((path) => row(path.unchanged ? "along the shortcut" : `through ${path.to}`, path, "")), ...row("sum: ∂L/∂x", box.total, "total")),
    make("p", { class: "muted prose" }, "Norms on the left; on the right the same channels of each gradient, in the same colours. ", scaleOf(box.total.picture)),
    factsOf([["shape", box.shape], ["cosine of the angle between the two", box.cosine]]),
  ];
}

function forkWords(box) {
  const words = [make("p", { class: "prose" }, `The value x goes into ${box.paths.length === 2 ? "two" : box.paths.length} paths, so by the chain rule its gradient is the sum of what comes back along each of them.`)];
  const skip = box.paths.find((path) => path.unchanged);
  if (skip && box.paths.length === 2) {
    const other = box.paths.find((path) => path !== skip);
    words.push(make("p", { class: "prose" }, "This is a skip connection: y = F(x) + x, so ∂L/∂x = (∂F/∂x)ᵀ ∂L/∂y + ∂L/∂y. " +
      `The second term is ∂L/∂y itself. No weight multiplies it: it arrives as it was at the +, with norm ${skip.norm_text}. ` +
      `The first term went back through all layers of F and arrives with norm ${other.norm_text}. ` +
      "However small the first becomes in a deep network, the second remains. This is why residual networks can be trained " +
      "at depths at which plain ones cannot (He, Zhang, Ren, Sun 2016, “Identity mappings in deep residual networks”)."));
  }
  return words;
}

function inputPanel(box) {
  return [
    titleOf(box.title, box.detail),
    factsOf([["shape", box.shape], ["norm of ∂L/∂x", box.grad_norm]]),
    box.photograph ? make("p", { class: "prose" }, make("img", { src: box.photograph.src, alt: "The image", style: "image-rendering: pixelated; width: 160px; border-radius: 4px" })) : null,
    ...mapsOf(box),
  ].filter(Boolean);
}

function foldedPanel(box) {
  return [titleOf(box.title, box.detail), factsOf([["operations", box.ops.toLocaleString("en")], ["from", box.names[0]], ["to", box.names[1]]]),
    make("p", { class: "prose" }, "These parts compute the same on the same shapes as the one above them, with other parameters. They are folded so that the page stays small. Their gradients are in the chart of the overview.")];
}

// ---- the overview ------------------------------------------------------------------------------------------------------

function overviewPanel() {
  const { chart } = page;
  const words = chart.skips.length
    ? "Read it from right to left: the gradient starts at the loss and goes back to the image. At each skip connection it is the sum (black) of what comes back through the layers of the block (blue) and of what the shortcut brings (orange)."
    : "Read it from right to left: the gradient starts at the loss and goes back to the image. Every layer on its way multiplies it.";
  return [
    make("h2", {}, "The gradient on its way back"),
    make("p", { class: "prose" }, words, " Choose a box on the left, or a place in the chart."),
    drawChart(chart),
    keyOf(chart),
    make("h3", {}, "This page"),
    factsOf(page.facts),
    ...page.notes.map((note) => make("p", { class: "prose" }, note)),
    make("h3", {}, "How the network calls its parts"),
    quote(page.network.quote),
    make("h3", {}, "Keys"),
    make("p", { class: "prose" }, "↑ ↓ go from box to box, → unfolds, ← folds, Enter unfolds a module or goes to the panel, Escape comes back."),
  ];
}

/** Says what the colours of the chart mean. */
function keyOf(chart) {
  const entry = (shape, colour, text) => make("span", {}, make("span", { class: shape, style: `background: ${colour}` }), text);
  const skips = [entry("dash", "var(--ink)", "sum at a skip connection"), entry("dot", "var(--forward)", "back through the layers"),
    entry("dot", "var(--gradient)", "back along the shortcut")];
  return make("div", { class: "key muted" }, ...(chart.skips.length ? skips : []), entry("dash", "var(--muted)", "behind each operation"));
}

function drawChart(chart) {
  const [width, height, left, right, top, bottom] = [820, 300, 46, 8, 10, 40];
  const values = [...chart.norms, ...chart.skips.flatMap((skip) => [skip.near, skip.far, skip.sum])].filter((value) => value > 0).map(Math.log10);
  const svg = draw("svg", { id: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Norms of the gradients of all operations" });
  if (!values.length) return svg;
  const low = Math.floor(Math.min(...values)), high = Math.max(Math.ceil(Math.max(...values)), low + 1);
  const x = (number) => left + ((width - left - right) * (number + 0.5)) / chart.norms.length;
  const y = (norm) => top + ((height - top - bottom) * (high - Math.log10(norm))) / (high - low);
  for (let decade = low; decade <= high; decade += Math.ceil((high - low) / 6)) {
    svg.append(draw("path", { class: "axis", d: `M ${left} ${y(10 ** decade)} H ${width - right}` }),
      draw("text", { x: left - 6, y: y(10 ** decade) + 4, "text-anchor": "end" }, decade > -3 && decade < 4 ? String(10 ** decade) : `1e${decade}`));
  }
  let labelled = -Infinity;
  for (const [name, number] of chart.stages) {
    const at = x(number) - (x(1) - x(0)) / 2;
    svg.append(draw("path", { class: "stage", d: `M ${at} ${top} V ${height - bottom}` }));
    const end = at + 7 * name.length + 8;
    if (at > labelled && end < width) {
      svg.append(draw("text", { x: at + 3, y: height - bottom + 14 }, name));
      labelled = end;
    }
  }
  svg.append(draw("text", { x: left, y: height - 6 }, "operations, from the image to the loss →"),
    draw("text", { x: width - right, y: height - 6, "text-anchor": "end", class: "gradient" }, "← the gradient; its norm upwards, logarithmic"));
  const line = (points, kind, stroke) => svg.append(draw("path", { class: kind, "stroke-width": stroke, d: points.map(([a, b], i) => `${i ? "L" : "M"} ${a.toFixed(1)} ${b.toFixed(1)}`).join(" ") }));
  const all = chart.norms.map((norm, number) => [number, norm]).filter(([, norm]) => norm > 0).map(([number, norm]) => [x(number), y(norm)]);
  const small = chart.skips.length > 60;
  line(all, "all", small ? 0.3 : chart.skips.length ? 1 : 1.8);
  if (chart.skips.length) {
    line(chart.skips.filter((skip) => skip.sum > 0).map((skip) => [x(skip.at), y(skip.sum)]), "sum", 1.8);
    for (const skip of chart.skips) for (const kind of ["near", "far"]) {
      if (skip[kind] > 0) svg.append(draw("circle", { class: kind, cx: x(skip.at), cy: y(skip[kind]), r: small ? 1.3 : 3.5 }));
    }
  }
  const step = (width - left - right) / chart.norms.length;
  for (const [number, id] of Object.entries(chart.boxes)) {
    const hit = draw("rect", { class: "hit", x: x(Number(number)) - step / 2, y: top, width: step, height: height - top - bottom },
      draw("title", {}, `${chart.names[number]}: ${chart.norms[number]}`));
    hit.addEventListener("click", () => select(id));
    svg.append(hit);
  }
  return svg;
}

// ---- keys ------------------------------------------------------------------------------------------------------------

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
  const items = visibleItems(), at = items.indexOf(item), expanded = item.getAttribute("aria-expanded");
  const outside = item.parentElement.closest("[role=treeitem]");
  const actions = {
    ArrowDown: () => goTo(items[at + 1]),
    ArrowUp: () => goTo(items[at - 1]),
    Home: () => goTo(items[0]),
    End: () => goTo(items[items.length - 1]),
    ArrowRight: () => (expanded === "false" ? toggle(item.id, true) : expanded === "true" && goTo(items[at + 1])),
    ArrowLeft: () => (expanded === "true" ? toggle(item.id, false) : goTo(outside)),
    Enter: () => { select(item.id); if (expanded === null) panel.focus(); else toggle(item.id); },
    " ": () => { select(item.id); toggle(item.id); },
    "*": () => (outside || tree).querySelectorAll("[role=treeitem]").forEach((other) => toggle(other.id, true)),
    Escape: overview,
  };
  if (!(event.key in actions)) return;
  event.preventDefault();
  actions[event.key]();
}

// ---- start -----------------------------------------------------------------------------------------------------------

function followHash() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const found = [...boxes.values()].find(({ box }) => box.id === wanted || (wanted && (box.name === wanted || box.layer === wanted)));
  if (found) { select(found.box.id); toggle(found.box.id, true); }
}

document.getElementById("facts").append(...page.head.map((fact) => make("span", {}, fact)));
register(page.network.graph, page.network.id);
tree.append(buildGraph(page.network.graph, page.network.id));
tree.firstElementChild.setAttribute("role", "none");
tree.querySelector("[role=treeitem]").setAttribute("tabindex", "0");
tree.addEventListener("keydown", onKey);
panel.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && selected) { event.preventDefault(); boxes.get(selected).element.focus(); }
});
document.getElementById("unfold").addEventListener("click", () => toggleAll(true));
document.getElementById("fold").addEventListener("click", () => toggleAll(false));
document.getElementById("overview").addEventListener("click", overview);
// On paper the network keeps its width, as the arrows are drawn for it.
window.addEventListener("beforeprint", () => { tree.style.width = `${tree.offsetWidth}px`; });
window.addEventListener("afterprint", () => { tree.style.width = ""; });
new ResizeObserver(redraw).observe(tree);
window.addEventListener("hashchange", followHash);
overview();
followHash();
redraw();
