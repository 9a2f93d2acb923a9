"use strict";

// Tables sort by the column whose head is pressed.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isText = column === 0;
    const first = isText ? "ascending" : "descending";
    const second = isText ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const text = (row) => row.cells[column].textContent;
    const number = (row) => { const value = parseFloat(text(row)); return Number.isNaN(value) ? -Infinity : value; };
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => isText ? text(a).localeCompare(text(b)) : number(a) - number(b));
    if (order === "descending") rows.reverse();
    table.tBodies[0].append(...rows);
  }));
}

// A box hides the rows whose label does not hold its text.
for (const box of document.querySelectorAll("input.search")) {
  const table = box.parentElement.nextElementSibling.querySelector("table");
  const said = box.nextElementSibling;
  const rows = [...table.tBodies[0].rows];
  const all = said.textContent;
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    said.textContent = wanted ? `${shown} of ${all}` : all;
  });
}

// Paper cannot be unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const part of unfolded) part.open = true;
});
addEventListener("afterprint", () => { for (const part of unfolded) part.open = false; });

// Charts say their values under the pointer, and with the arrow keys on focus.
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg");
  let chart = null;
  const at = (event) => {
    chart ??= new Chart(figure, svg);
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    chart.near((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  };
  svg.addEventListener("pointermove", at);
  svg.addEventListener("pointerdown", at);
  svg.addEventListener("pointerleave", () => { if (document.activeElement !== svg) chart?.clear(); });
  svg.addEventListener("blur", () => chart?.clear());
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    chart ??= new Chart(figure, svg);
    chart.step(move);
  });
}

function Chart(figure, svg) {
  const [xFrom, xTo, yFrom, yTo] = figure.dataset.ends.split(" ").map(Number);
  const [left, right, floor, top] = figure.dataset.places.split(" ").map(Number);
  const isFunction = figure.hasAttribute("data-function");
  const xOf = (pixel) => xFrom + (pixel - left) / (right - left) * (xTo - xFrom);
  const yOf = (pixel) => yFrom + (floor - pixel) / (floor - top) * (yTo - yFrom);
  const points = (line) => line.getAttribute("points").split(" ").filter(Boolean).map((pair) => pair.split(",").map(Number));
  const lines = [...svg.querySelectorAll("polyline")].map((line) =>
    ({ kind: line.dataset.k, isThin: line.classList.contains("thin"), points: points(line) }));
  const mains = lines.filter((line) => !line.isThin && line.points.length > 0);
  // Things with words of their own: bars and single points.
  const items = [...svg.querySelectorAll("[data-v]")].map((item) => {
    const box = item.getBBox();
    return { item, isBar: item.tagName === "rect", x: box.x + box.width / 2, y: box.y + box.height / 2, half: box.width / 2 };
  });
  const said = figure.querySelector(".legend output");
  const cursor = document.createElementNS(svg.namespaceURI, "path");
  const ring = document.createElementNS(svg.namespaceURI, "circle");
  cursor.setAttribute("class", "cursor");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", "5");
  let index = -1;

  const short = (value, range) => {
    if (value !== 0 && range < 0.02) return value.toExponential(2);
    const digits = Math.min(6, Math.max(0, 3 - Math.floor(Math.log10(range) + 1e-9)));
    return String(Number(value.toFixed(Math.min(digits, 4))));
  };
  const nearest = (points, x) => points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
  const bold = (kind) => figure.querySelector(`.legend .key[data-k="${kind}"] b`);

  // Steps of the keyboard: the points of the longest line, or the items.
  const longest = mains.reduce((best, line) => line.points.length > best.length ? line.points : best, []);
  const isOfItems = mains.length === 0 || (isFunction && items.length > 1);

  this.clear = () => {
    said.textContent = "";
    for (const line of mains) { const value = bold(line.kind); if (value) value.textContent = ""; }
    for (const { item } of items) item.classList.remove("here");
    cursor.remove();
    ring.remove();
    index = -1;
  };
  const showItem = (found) => {
    this.clear();
    index = items.indexOf(found);
    found.item.classList.add("here");
    said.textContent = found.item.dataset.v;
  };
  const showLines = (x) => {
    this.clear();
    const point = nearest(longest, x);
    index = longest.indexOf(point);
    for (const line of mains) {
      const own = nearest(line.points, point[0]);
      if (Math.abs(own[0] - point[0]) > (right - left) / 12) continue;
      const range = yTo - yFrom;
      let text = short(yOf(own[1]), range);
      const others = lines.filter((other) => other.isThin && other.kind === line.kind && other.points.length > 0)
        .map((other) => nearest(other.points, own[0])).filter((other) => Math.abs(other[0] - own[0]) < 0.5)
        .map((other) => yOf(other[1]));
      if (others.length > 1) text += ` (${short(Math.min(...others), range)}–${short(Math.max(...others), range)})`;
      const value = bold(line.kind);
      if (mains.length > 1 && value) value.textContent = text; else said.textContent = `${figure.dataset.y} ${text} `;
    }
    said.textContent += `at ${figure.dataset.x} ${short(xOf(point[0]), xTo - xFrom)}`;
    cursor.setAttribute("d", `M${point[0]} ${top}V${floor}`);
    svg.append(cursor);
  };
  const showPoint = (which) => {
    this.clear();
    index = which;
    const [x, y] = longest[which];
    said.textContent = `${figure.dataset.x} ${short(xOf(x), xTo - xFrom)}, ${figure.dataset.y} ${short(yOf(y), yTo - yFrom)}`;
    if (figure.dataset.steps) said.textContent += ` at ${figure.dataset.steps} ${short(which * Number(figure.dataset.step), 1)}`;
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    svg.append(ring);
  };

  this.near = (x, y) => {
    const away = (found) => Math.hypot(found.x - x, found.y - y);
    const item = items.filter((found) => !found.isBar && away(found) < 9).sort((a, b) => away(a) - away(b))[0]
      ?? items.find((found) => found.isBar && Math.abs(found.x - x) <= found.half + 0.5);
    if (item) return showItem(item);
    if (longest.length === 0) return this.clear();
    if (isFunction) return isOfItems ? this.clear() : showLines(x);
    const distance = ([a, b]) => Math.hypot(a - x, b - y);
    showPoint(longest.reduce((best, point, which) => distance(point) < distance(longest[best]) ? which : best, 0));
  };
  this.step = (move) => {
    const count = isOfItems ? items.length : longest.length;
    if (count === 0) return;
    const next = index < 0 ? (move < 0 ? count - 1 : 0) : Math.min(count - 1, Math.max(0, index + move));
    if (isOfItems) showItem(items[next]); else if (isFunction) showLines(longest[next][0]); else showPoint(next);
  };
}
