// The arrows between the boxes: values downwards, gradients upwards.

const APART = 13; // pixels between an arrow of values and one of gradients
const norms = page.chart.norms.filter((norm) => norm > 0).map(Math.log);
const lowest = norms.reduce((low, norm) => Math.min(low, norm), Infinity);
const highest = norms.reduce((high, norm) => Math.max(high, norm), -Infinity);

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
  const top = element.getBoundingClientRect().top;
  const spines = spinesOf(element, graph);
  for (const edge of graph.edges) {
    const [from, to] = edge.ends.map((number) => graph.boxes[number]);
    const [above, below] = edge.ends.map((number) => graph.places[number].getBoundingClientRect());
    const column = edge.wire ?? Math.max(from.span[0], to.span[0]);
    // An edge leaves and enters a box in its own column, or in the one that is nearest.
    const within = (box) => spines[Math.min(Math.max(column, box.span[0]), box.span[1])];
    drawEdge(svg, edge, {
      x0: within(from),
      y0: above.bottom - top,
      x: spines[column],
      x1: within(to),
      y1: below.top - top,
      hasShape: column === 0 && edge.wire === null && element.clientWidth > 260,
      hasNumber: edge.wire === null || !many(graph),
    });
  }
}

/** For each column, where its arrows run: labels go to both sides of them. */
function spinesOf(element, graph) {
  const style = getComputedStyle(element);
  const gap = parseFloat(style.columnGap);
  let left = parseFloat(style.paddingLeft);
  return style.gridTemplateColumns
    .split(" ")
    .map(parseFloat)
    .map((width, number) => {
      const start = left;
      left += width + gap;
      if (number === 0) return start + Math.min(104, 0.38 * width);
      if (graph.columns[number] === "wire") return start + (many(graph) ? 6 : 16);
      return start + Math.min(84, 0.45 * width);
    });
}

function drawEdge(svg, edge, { x0, y0, x, x1, y1, hasShape, hasNumber }) {
  const bend = Math.min(28, (y1 - y0) / 2);
  const path = (shift, tail, tip) =>
    `M ${x0 + shift} ${y0 + tail} C ${x0 + shift} ${y0 + bend}, ${x + shift} ${y0}, ${x + shift} ${y0 + bend} ` +
    `L ${x + shift} ${y1 - bend} C ${x + shift} ${y1}, ${x1 + shift} ${y1 - bend}, ${x1 + shift} ${y1 - tip}`;
  svg.append(draw("path", { class: "forward", "stroke-width": 1.5, d: path(0, 0, 6) }), tip("forward", x1, y1, 1, 4));
  const middle = y0 + bend + (y1 - bend - y0 - bend) / 2 + 4;
  if (hasShape) svg.append(draw("text", { x: x - 8, y: middle, "text-anchor": "end" }, edge.shape));
  if (edge.norm_text === "none") return;
  const width = arrowWidth(edge.norm);
  svg.append(
    draw("path", { class: "gradient", "stroke-width": width, d: path(APART, 6, 0) }),
    tip("gradient", x0 + APART, y0, -1, 3 + width / 2),
  );
  if (!hasNumber) return;
  svg.append(draw("text", { class: "gradient", x: x + APART + 7, y: middle }, edge.norm_text));
  if (edge.unchanged) svg.append(draw("text", { x: x + APART + 7, y: middle + 14 }, "unchanged"));
}

function tip(kind, x, y, direction, half) {
  const back = y - 8 * direction;
  return draw("path", { class: `tip ${kind}`, d: `M ${x} ${y} L ${x - half} ${back} L ${x + half} ${back} Z` });
}
