// The overview: the chart of all gradients, and what the page says of itself.

function overviewPanel() {
  const { chart } = page;
  const direction = "Read it from right to left: the gradient starts at the loss and goes back to the image. ";
  const skips =
    "At each skip connection it is the sum (the line) of what comes back through the layers of the block (blue) and of " +
    "what the shortcut brings (orange). ";
  return [
    make("h2", {}, "The gradient on its way back"),
    make(
      "p",
      { class: "prose" },
      direction,
      chart.skips.length ? skips : "Every layer on its way multiplies it. ",
      "Choose a box on the left, or a place in the chart.",
    ),
    drawChart(chart),
    keyOf(chart),
    make("h3", {}, "This page"),
    factsOf(page.facts),
    ...page.notes.map((note) => make("p", { class: "prose" }, note)),
    make("h3", {}, "How the network calls its parts"),
    quote(page.network.quote),
    make("h3", {}, "Keys"),
    make(
      "p",
      { class: "prose" },
      "↑ ↓ go from box to box, → unfolds, ← folds, Enter unfolds a module or goes to the panel, Escape comes back.",
    ),
  ];
}

/** Says what the colours of the chart mean. */
function keyOf(chart) {
  const entry = (shape, colour, text) =>
    make("span", {}, make("span", { class: shape, style: `background: ${colour}` }), text);
  const skips = [
    entry("dash", "var(--ink)", "sum at a skip connection"),
    entry("dot", "var(--forward)", "back through the layers"),
    entry("dot", "var(--gradient)", "back along the shortcut"),
  ];
  const all = entry("dash", "var(--muted)", "behind each operation");
  return make("div", { class: "key muted" }, ...(chart.skips.length ? skips : []), all);
}

const SIZE = { width: 820, height: 300, left: 46, right: 8, top: 10, bottom: 40 };

/** Draws the norms of all gradients, on a logarithmic scale, over the operations. */
function drawChart(chart) {
  const { width, height } = SIZE;
  const label = "Norms of the gradients of all operations";
  const svg = draw("svg", { id: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const skips = chart.skips.flatMap((skip) => [skip.near, skip.far, skip.sum]);
  const values = [...chart.norms, ...skips].filter((value) => value > 0).map(Math.log10);
  if (!values.length) return svg;
  const low = Math.floor(values.reduce((a, b) => Math.min(a, b)));
  const high = Math.max(Math.ceil(values.reduce((a, b) => Math.max(a, b))), low + 1);
  const scale = scalesOf(chart, low, high);
  drawAxes(svg, chart, scale, low, high);
  drawNorms(svg, chart, scale);
  drawLinks(svg, chart, scale);
  return svg;
}

function scalesOf(chart, low, high) {
  const { width, height, left, right, top, bottom } = SIZE;
  const step = (width - left - right) / chart.norms.length;
  return {
    step,
    x: (number) => left + step * (number + 0.5),
    y: (norm) => top + ((height - top - bottom) * (high - Math.log10(norm))) / (high - low),
  };
}

function drawAxes(svg, chart, { x, y, step }, low, high) {
  const { width, height, left, right, top, bottom } = SIZE;
  for (let decade = low; decade <= high; decade += Math.ceil((high - low) / 6)) {
    const at = y(10 ** decade);
    const text = decade > -3 && decade < 4 ? String(10 ** decade) : `1e${decade}`;
    svg.append(draw("path", { class: "axis", d: `M ${left} ${at} H ${width - right}` }));
    svg.append(draw("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, text));
  }
  let free = -Infinity;
  for (const [name, number] of chart.stages) {
    const at = x(number) - step / 2;
    const end = at + 7 * name.length + 8;
    svg.append(draw("path", { class: "stage", d: `M ${at} ${top} V ${height - bottom}` }));
    if (at > free && end < width) {
      svg.append(draw("text", { x: at + 3, y: height - bottom + 14 }, name));
      free = end;
    }
  }
  const last = { x: width - right, y: height - 6, "text-anchor": "end", class: "gradient" };
  svg.append(draw("text", { x: left, y: height - 6 }, "operations, from the image to the loss →"));
  svg.append(draw("text", last, "← the gradient; its norm upwards, logarithmic"));
}

function drawNorms(svg, chart, { x, y }) {
  const line = (points, kind, stroke) => {
    const known = points.filter(([, norm]) => norm > 0);
    const d = known.map(([number, norm], i) => `${i ? "L" : "M"} ${x(number).toFixed(1)} ${y(norm).toFixed(1)}`);
    svg.append(draw("path", { class: kind, "stroke-width": stroke, d: d.join(" ") }));
  };
  const dense = chart.skips.length > 60;
  const all = chart.norms.map((norm, number) => [number, norm]);
  line(all, "all", dense ? 0.3 : chart.skips.length ? 1 : 1.8);
  if (!chart.skips.length) return;
  const sums = chart.skips.map((skip) => [skip.at, skip.sum]);
  line(sums, "sum", 1.8);
  for (const skip of chart.skips) {
    for (const kind of ["near", "far"].filter((kind) => skip[kind] > 0)) {
      svg.append(draw("circle", { class: kind, cx: x(skip.at), cy: y(skip[kind]), r: dense ? 1.3 : 3.5 }));
    }
  }
}

/** A click in the chart selects the operation there. */
function drawLinks(svg, chart, { x, step }) {
  const { height, top, bottom } = SIZE;
  for (const [number, id] of Object.entries(chart.boxes)) {
    const title = draw("title", {}, `${chart.names[number]}: ${chart.norms[number]}`);
    const place = { x: x(Number(number)) - step / 2, y: top, width: step, height: height - top - bottom };
    const hit = draw("rect", { class: "hit", ...place }, title);
    hit.addEventListener("click", () => select(id));
    svg.append(hit);
  }
}
