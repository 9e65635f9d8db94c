"use strict";

const settings = JSON.parse(document.body.dataset.settings);
const byId = (id) => document.getElementById(id);
const [drop, file, status, error, results] = ["drop", "file", "status", "error", "results"].map(byId);

const TITLES = {
  generated: "Looks generated",
  real: "Looks real",
  unsure: "Unsure",
};
const EXPLANATIONS = {
  generated: "That is no proof: the limits below say where this fails.",
  real: "That is no proof: a generator this detector does not know can pass.",
  unsure: "The score lies where both real and generated images are found, or neither.",
};

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function percent(value) {
  const shown = 100 * value;
  if (shown > 0 && shown < 1) return "under 1 %";
  if (shown > 99 && shown < 100) return "over 99 %";
  return `${Math.round(shown)} %`;
}

function show(image, result) {
  const item = element("li", undefined, result.verdict || "failed");
  const picture = element("img");
  picture.alt = "";
  picture.src = URL.createObjectURL(image);
  picture.onload = () => URL.revokeObjectURL(picture.src);
  picture.onerror = () => picture.replaceWith(element("div", "no picture", "blank"));
  const text = element("div");
  text.append(element("h3", result.verdict ? TITLES[result.verdict] || result.verdict : "Not readable"));
  if (result.verdict) {
    const value = settings.calibrated ? result.probability : result.score;
    const meter = element("meter");
    meter.min = 0;
    meter.max = 1;
    meter.value = value;
    const words = settings.calibrated
      ? `Probability of being generated: ${percent(value)}`
      : `Score ${value.toFixed(3)} of 1, not calibrated: no probability`;
    meter.setAttribute("aria-label", words);
    const ends = element("p", undefined, "ends");
    ends.setAttribute("aria-hidden", "true");
    ends.append(element("span", "real"), element("span", "generated"));
    text.append(element("p", words), meter, ends, element("p", EXPLANATIONS[result.verdict] || ""));
  } else {
    text.append(element("p", result.error));
  }
  text.append(element("p", image.name, "name"));
  item.append(picture, text);
  results.append(item);
}

function fail(message) {
  status.textContent = "";
  error.textContent = message;
  error.hidden = false;
}

async function score(images) {
  results.replaceChildren();
  error.hidden = true;
  if (images.length === 0) return;
  if (images.length > settings.maxImages) {
    fail(`These are ${images.length} images; at most ${settings.maxImages} are scored at a time.`);
    return;
  }
  if (images.reduce((sum, image) => sum + image.size, 0) > settings.maxBytes) {
    fail("These images are too large. Choose fewer or smaller ones.");
    return;
  }
  const body = new FormData();
  for (const image of images) body.append("image", image, image.name);
  const token = byId("token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  status.textContent = images.length === 1 ? "Looking at it…" : `Looking at ${images.length} images…`;
  try {
    const response = await fetch("/v1/score", { method: "POST", body, headers });
    const answer = await response.json();
    if (!answer.results) {
      fail(answer.error.message);
      return;
    }
    images.forEach((image, place) => show(image, answer.results[place]));
    const named = answer.results.map((result) => TITLES[result.verdict] || "Not readable");
    status.textContent = named.length === 1 ? `${named[0]}.` : `${named.length} images judged.`;
  } catch (reason) {
    fail("The server does not answer. Try again in a moment.");
  }
}

byId("token-row").addEventListener("submit", (event) => event.preventDefault());
file.addEventListener("change", () => {
  const images = [...file.files];
  file.value = "";
  score(images);
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  score([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const images = [...event.clipboardData.files];
  if (images.length) score(images);
});
