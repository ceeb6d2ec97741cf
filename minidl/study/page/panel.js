// The panel: what is known of the box that is selected.

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
  return make(
    "div",
    { class: "title" },
    make("h2", {}, title),
    make("span", { class: "where" }, detail),
    make("span", { class: "buttons" }, button("‹", "Previous box", -1), button("›", "Next box", 1)),
  );
}

function factsOf(rows) {
  const known = rows.filter(([, value]) => value);
  const fact = ([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  return make("dl", { class: "facts" }, known.map(fact));
}

function image(picture, alt) {
  if (!picture) return make("span", { class: "muted" }, "–");
  const { src, width, height } = picture;
  return make("img", { src, alt, width, height, class: height === 1 ? "vector" : "map" });
}

function scaleOf(picture) {
  if (!picture) return "";
  return make(
    "span",
    { class: "muted" },
    `−${picture.largest} `,
    make("span", { class: "scale" }),
    ` ${picture.largest}`,
  );
}

function mapsOf(box) {
  const channels = box.value && box.value.channels;
  const what = channels ? `Channels ${channels.join(", ")} of the result` : "The result";
  const title = `${what}, and the gradient of the loss with respect to ${channels ? "them" : "it"}`;
  if (!box.value && !box.grad) return [];
  return [
    make("h3", {}, title),
    make(
      "div",
      { class: "maps" },
      make("span", { class: "forward" }, "y"),
      image(box.value, "values"),
      scaleOf(box.value),
      make("span", { class: "gradient" }, "∂L/∂y"),
      image(box.grad, "gradients"),
      scaleOf(box.grad),
    ),
  ];
}

function opPanel(box) {
  const op = page.functions[box.function];
  return [
    titleOf(box.is_layer ? box.layer : op.name, box.is_layer ? op.name : whereOf(box)),
    factsOf([
      ["result", `${box.shape}, ${box.dtype}`],
      ...box.hyperparameters,
      ["norm of y", box.value_norm],
      ["norm of ∂L/∂y", box.grad_norm],
      ["multiply-adds", box.macs],
      ["forward", box.forward],
      ["backward", box.backward],
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
      if (next) {
        next.focus();
        next.click();
      }
    });
    tabs.append(tab);
  });
  show(0);
  return [tabs, body];
}

function levelOf(level) {
  const side = (title, keys) => make("div", {}, make("h4", {}, title), keys.map(quote));
  const sides = make("div", { class: "sides" }, side("Forward", level.forward), side("Backward", level.backward));
  const parts = [make("p", { class: "muted" }, level.words), sides];
  if (level.helpers.length) {
    const columns = halves(level.helpers).map((keys) => make("div", {}, keys.map(quote)));
    const summary = make("summary", {}, `${level.helpers.length} functions that these call`);
    parts.push(make("details", {}, summary, make("div", { class: "sides" }, columns)));
  }
  return parts;
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

/** A table. A head that begins with # is over numbers. */
function table(heads, rows) {
  const kind = (index) => (heads[index].startsWith("#") ? "number" : null);
  const head = heads.map((text, i) => make("th", { class: kind(i), scope: "col" }, text.replace("#", "")));
  const body = rows.map((row) =>
    make(
      "tr",
      {},
      row.map((cell, i) => make("td", { class: kind(i) }, cell ?? "")),
    ),
  );
  return make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, body));
}

function link(number, text) {
  const id = page.chart.boxes[number];
  if (!id) return text;
  const anchor = make("a", { href: `#${id}` }, text);
  anchor.addEventListener("click", (event) => {
    event.preventDefault();
    select(id);
  });
  return anchor;
}

function inputsTable(box) {
  return table(
    ["input", "from", "shape", "#norm of its gradient"],
    box.inputs.map((input) => [
      make("code", {}, input.name),
      "op" in input ? link(input.op, input.what) : input.what,
      input.shape,
      input.norm_text,
    ]),
  );
}

function savedTable(box) {
  return table(
    ["name", "shape or value", "dtype", "#bytes", "the same array as"],
    box.saved.map((saved) => [
      make("code", {}, saved.name),
      saved.shape || saved.value,
      saved.dtype,
      saved.bytes,
      saved.same,
    ]),
  );
}

function groupPanel(box) {
  const inside = make("button", { type: "button" }, "Unfold or fold");
  inside.addEventListener("click", () => toggle(box.id));
  return [
    titleOf(box.name, box.detail),
    factsOf([
      ["operations", String(box.ops)],
      ["parameters", box.parameters],
      ["multiply-adds", box.macs],
      ["result", box.shape],
    ]),
    make("p", { class: "prose" }, inside),
    make("h3", {}, "How it calls its parts"),
    quote(box.quote),
    ...(box.last in page.chart.boxes ? mapsOf(boxes.get(page.chart.boxes[box.last]).box) : []),
  ];
}

function forkPanel(box) {
  const largest = Math.max(...box.paths.map((path) => path.norm || 0), box.total.norm || 0) || 1;
  const bar = (part, kind) => {
    const width = `display: block; width: ${(100 * (part.norm || 0)) / largest}%`;
    return make("span", {}, make("span", { class: `bar ${kind}`, style: width }));
  };
  const row = (name, part, kind) => [
    make("span", { class: kind }, name),
    bar(part, kind),
    make("span", { class: `gradient ${kind}` }, part.norm_text),
    image(part.picture, name),
  ];
  const nameOf = (path) => (path.unchanged ? "along the shortcut" : `through ${path.to}`);
  return [
    titleOf(`A value that is ${box.title}: its gradient`, `x is the result of ${box.detail}`),
    ...wordsOf(box).map((text) => make("p", { class: "prose" }, text)),
    make(
      "div",
      { class: "paths" },
      ...box.paths.flatMap((path) => row(nameOf(path), path, "")),
      ...row("sum: ∂L/∂x", box.total, "total"),
    ),
    make(
      "p",
      { class: "muted prose" },
      "Norms on the left; on the right the same channels of each gradient, in the same colours. ",
      scaleOf(box.total.picture),
    ),
    factsOf([
      ["shape", box.shape],
      ["cosine of the angle between the two", box.cosine],
    ]),
  ];
}

function wordsOf(box) {
  const count = box.paths.length === 2 ? "two" : box.paths.length;
  const words = [
    `The value x goes into ${count} paths, so by the chain rule its gradient is the sum of what comes back along each of them.`,
  ];
  const skip = box.paths.find((path) => path.unchanged);
  const other = box.paths.find((path) => !path.unchanged);
  if (skip && other && box.paths.length === 2) {
    words.push(
      "This is a skip connection: y = F(x) + x, so ∂L/∂x = (∂F/∂x)ᵀ ∂L/∂y + ∂L/∂y. The second term is ∂L/∂y itself. " +
        `No weight multiplies it: it arrives as it was at the +, with norm ${skip.norm_text}. The first term went back ` +
        `through all layers of F and arrives with norm ${other.norm_text}. However small the first becomes in a deep ` +
        "network, the second remains. This is why residual networks can be trained at depths at which plain ones " +
        "cannot (He, Zhang, Ren, Sun 2016, “Identity mappings in deep residual networks”).",
    );
  }
  return words;
}

function inputPanel(box) {
  const pixels = box.photograph && make("img", { src: box.photograph.src, alt: "The image", class: "photograph" });
  return [
    titleOf(box.title, box.detail),
    factsOf([
      ["shape", box.shape],
      ["norm of ∂L/∂x", box.grad_norm],
    ]),
    ...(pixels ? [make("p", { class: "prose" }, pixels)] : []),
    ...mapsOf(box),
  ];
}

function foldedPanel(box) {
  const words =
    "These parts compute the same on the same shapes as the one above them, with other parameters. They are folded so " +
    "that the page stays small. Their gradients are in the chart of the overview.";
  return [
    titleOf(box.title, box.detail),
    factsOf([
      ["operations", box.ops.toLocaleString("en")],
      ["from", box.names[0]],
      ["to", box.names[1]],
    ]),
    make("p", { class: "prose" }, words),
  ];
}
