"use strict";
const tip = document.getElementById("tip");
let marked = null;

function show(text, x, y) {
  tip.textContent = text;  // never markup: tokens are what a model wrote
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(6, x - box.width / 2), innerWidth - box.width - 6);
  const top = y - box.height - 14 > 4 ? y - box.height - 14 : y + 20;
  tip.style.left = left + "px";
  tip.style.top = top + "px";
}

function hide() {
  tip.hidden = true;
  if (marked) marked.classList.remove("on");
  marked = null;
  for (const cross of document.querySelectorAll(".cross")) cross.setAttribute("visibility", "hidden");
}

function number(value) {
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 100000) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function nearest(points, x) {
  return points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
}

function read(svg, event) {
  const chart = JSON.parse(svg.dataset.chart);
  const box = svg.getBoundingClientRect();
  const place = (event.clientX - box.left) / box.width * chart.width;
  const at = chart.from + (place - chart.left) / (chart.right - chart.left) * (chart.to - chart.from);
  const found = chart.lines.map(line => [line.label, nearest(line.points, at)]);
  const step = found.reduce((best, entry) => Math.abs(entry[1][0] - at) < Math.abs(best - at) ? entry[1][0] : best, found[0][1][0]);
  const x = chart.left + (step - chart.from) / ((chart.to - chart.from) || 1) * (chart.right - chart.left);
  const cross = svg.querySelector(".cross");
  cross.setAttribute("x1", x);
  cross.setAttribute("x2", x);
  cross.setAttribute("visibility", "visible");
  const lines = found.filter(entry => Math.abs(entry[1][0] - step) <= chart.reach).map(entry => entry[0] + "  " + number(entry[1][1]));
  show((chart.places[step] || "step " + Math.round(step)) + "\n" + lines.join("\n"), box.left + x / chart.width * box.width, event.clientY);
}

function token(span) {
  hide();
  marked = span;
  span.classList.add("on");
  const box = span.getClientRects()[0];
  show(span.dataset.t, box.left + box.width / 2, box.top);
}

function point(event) {
  const span = event.target.closest("[data-t]");
  const svg = event.target.closest("svg[data-chart]");
  if (span) token(span);
  else if (svg) { hide(); read(svg, event); }
  else hide();
}

for (const button of document.querySelectorAll("button[data-colour]")) {
  button.addEventListener("click", () => {
    document.body.dataset.by = button.dataset.colour;
    for (const other of document.querySelectorAll("button[data-colour]")) other.setAttribute("aria-pressed", other === button);
  });
}
document.addEventListener("pointermove", event => { if (event.pointerType === "mouse") point(event); });
document.addEventListener("pointerdown", point);
addEventListener("scroll", hide, { passive: true });
