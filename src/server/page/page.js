"use strict";
// Labels and texts are set as text, never as markup.

const element = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let models = [];

function make(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function say(message, isError = false) {
  element("status").textContent = message;
  element("status").className = isError ? "error" : "";
}

async function ask(path, body) {
  const headers = {};
  const key = element("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (response.status === 401) element("key-row").hidden = false;
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function showModels() {
  const fieldset = element("models");
  fieldset.replaceChildren(make("legend", models.length > 1 ? "Models, side by side" : "Model"));
  models.forEach((model, index) => {
    const label = make("label");
    const box = make("input", undefined, { type: "checkbox", value: model.name });
    box.checked = index < 2;
    label.append(box, ` ${model.name} (${model.labels.length} labels)`);
    fieldset.append(label);
  });
}

async function loadModels() {
  try {
    models = (await ask("info")).models;
    showModels();
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function bar(probability, threshold) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const add = (name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    svg.append(node);
  };
  add("rect", { class: "room", x: 0, y: 0, width: 100, height: 10 });
  add("rect", { class: "value", x: 0, y: 0, width: 100 * probability, height: 10 });
  if (threshold !== undefined) add("line", { x1: 100 * threshold, x2: 100 * threshold, y1: 0, y2: 10 });
  return svg;
}

function table(model, result) {
  const isMulti = model.problem_type === "multi_label_classification";
  const node = make("table");
  const cut = result.truncated ? ", the rest was cut" : "";
  node.append(make("caption", `${result.tokens} tokens${cut}`));
  const head = make("tr");
  for (const name of ["Label", "Probability", "", "Threshold", "Predicted"]) head.append(make("th", name, { scope: "col" }));
  if (!isMulti) head.children[3].remove();
  head.children[2].setAttribute("aria-hidden", "true");
  node.append(head);
  const order = result.labels.map((_, index) => index).sort((a, b) => result.probs[b] - result.probs[a]);
  for (const index of order) {
    const isSet = result.predicted.includes(result.labels[index]);
    const row = make("tr", undefined, isSet ? { class: "set" } : {});
    row.append(make("th", result.labels[index], { scope: "row", class: "label" }));
    row.append(make("td", result.probs[index].toFixed(3), { class: "number" }));
    const cell = make("td", undefined, { "aria-hidden": "true" });
    cell.append(bar(result.probs[index], isMulti ? model.thresholds[index] : undefined));
    row.append(cell);
    if (isMulti) row.append(make("td", model.thresholds[index].toFixed(2), { class: "number" }));
    row.append(make("td", isSet ? "yes" : "no"));
    node.append(row);
  }
  return node;
}

// The text with its words shaded by their weight for one label: blue ones speak for it, red ones against it.
function shaded(text, why) {
  const bytes = new TextEncoder().encode(text);
  const decode = (from, to) => new TextDecoder().decode(bytes.slice(from, to));
  const most = Math.max(...why.words.map((word) => Math.abs(word.weight)), Number.MIN_VALUE);
  const node = make("p", undefined, { class: "shaded" });
  let at = 0;
  for (const word of why.words) {
    const shade = Math.round(4 * Math.abs(word.weight) / most);
    node.append(decode(at, word.start));
    const title = `${word.weight >= 0 ? "+" : ""}${word.weight.toFixed(3)}`;
    node.append(shade === 0 ? word.word : make("mark", word.word, { class: `${word.weight > 0 ? "for" : "against"}${shade}`, title }));
    at = word.end;
  }
  node.append(decode(at, bytes.length));
  return node;
}

function whyButton(text, model) {
  const button = make("button", "Why?", { type: "button", class: "why" });
  const place = make("div");
  button.addEventListener("click", async () => {
    button.disabled = true;
    say("Explaining…");
    try {
      const answer = await ask("v1/predict", { texts: [text], model: model.name, explain: true });
      const parts = answer.results[0].why.map((why) => {
        const part = make("section");
        part.append(make("h4", why.label), shaded(text, why));
        return part;
      });
      place.replaceChildren(make("p", "Blue words speak for the label, red ones against it.", { class: "hint" }), ...parts);
      button.remove();
      say("");
    } catch (error) {
      button.disabled = false;
      say(error.message, true);
    }
  });
  const node = make("div");
  node.append(button, place);
  return node;
}

async function classify(event) {
  event.preventDefault();
  const given = element("texts").value;
  const texts = (element("whole").checked ? [given] : given.split("\n")).filter((text) => text.trim() !== "");
  const chosen = [...element("models").querySelectorAll("input:checked")].map((box) => box.value);
  if (models.length === 0) await loadModels();
  if (texts.length === 0 || chosen.length === 0) {
    say(texts.length === 0 ? "Type a text first." : "Choose a model first.", true);
    element("texts").focus();
    return;
  }
  say("Classifying…");
  try {
    const answers = await Promise.all(chosen.map((model) => ask("v1/predict", { texts, model })));
    const results = element("results");
    results.replaceChildren();
    texts.forEach((text, index) => {
      const article = make("article");
      article.append(make("h2", text.length > 300 ? `${text.slice(0, 300)}…` : text));
      const side = make("div", undefined, { class: "side" });
      answers.forEach((answer) => {
        const model = models.find((other) => other.name === answer.model);
        const part = make("section");
        part.append(make("h3", answer.model), table(model, answer.results[index]), whyButton(text, model));
        side.append(part);
      });
      article.append(side);
      results.append(article);
    });
    say(texts.length === 1 ? "1 text classified." : `${texts.length} texts classified.`);
  } catch (error) {
    say(error.message, true);
  }
}

element("form").addEventListener("submit", classify);
element("key").addEventListener("change", loadModels);
element("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form").requestSubmit();
});
loadModels();
