"use strict";

const settings = JSON.parse(document.body.dataset.settings);
const byId = (id) => document.getElementById(id);
const [drop, file, status, error, results, tools] = ["drop", "file", "status", "error", "results", "tools"].map(byId);

const TITLES = {
  generated: "Looks generated",
  real: "Looks real",
  unsure: "Unsure",
};
const FAILURES = {
  too_large: "Too large",
  unsupported_format: "Format not supported",
};
const EXPLANATIONS = {
  generated: "That is no proof: the limits below say where this fails.",
  real: "That is no proof: a generator this detector does not know can pass.",
  unsure: "The score lies where both real and generated images are found, or neither.",
};
const COUNTED = ["generated", "unsure", "real"];
const PART_BYTES = 1024; // of a request's body around each image
const COLUMNS = ["name", "score", "probability", "verdict", "note", "error", "model"];

let rows = [];

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

function preview(image, judged) {
  const box = element("div", undefined, "picture");
  const picture = element("img");
  picture.alt = "";
  picture.src = URL.createObjectURL(image);
  picture.onload = () => {
    URL.revokeObjectURL(picture.src);
    if (!judged) return;
    const { naturalWidth: width, naturalHeight: height } = picture;
    const side = Math.min(settings.cropSize, width, height);
    const frame = element("div", undefined, "crop");
    frame.title = "What was judged: the middle of the image";
    frame.style.width = frame.style.height = `${(100 * side) / Math.max(width, height)}%`;
    box.append(frame);
  };
  picture.onerror = () => picture.replaceWith(element("div", "no picture", "blank"));
  box.append(picture);
  return box;
}

function bar(value, words) {
  const made = element("div", undefined, "bar");
  const meter = element("meter");
  meter.min = 0;
  meter.max = 1;
  meter.value = value;
  meter.setAttribute("aria-label", words);
  const [low, high] = settings.band;
  const band = element("div", undefined, "band");
  band.style.left = `${100 * low}%`;
  band.style.width = `${100 * (high - low)}%`;
  band.title = `Unsure from ${percent(low)} to ${percent(high)}`;
  made.append(meter, band);
  return made;
}

function ends() {
  const made = element("p", undefined, "ends");
  made.setAttribute("aria-hidden", "true");
  made.append(element("span", "real"));
  const [low, high] = settings.band;
  if (high > low) made.append(element("span", `unsure ${percent(low)} to ${percent(high)}`));
  made.append(element("span", "generated"));
  return made;
}

function show(image, result) {
  const item = element("li", undefined, result.verdict || "failed");
  const text = element("div");
  if (result.verdict) {
    text.append(element("h3", TITLES[result.verdict] || result.verdict));
    const value = settings.calibrated ? result.probability : result.score;
    const words = settings.calibrated
      ? `Probability of being generated: ${percent(value)}`
      : `Score ${value.toFixed(3)} of 1, not calibrated: no probability`;
    if (result.note) {
      text.append(element("p", `Not judged by its score: ${result.note}.`));
    } else {
      text.append(element("p", words), bar(value, words), ends(), element("p", EXPLANATIONS[result.verdict] || ""));
    }
  } else {
    text.append(element("h3", FAILURES[result.code] || "Not readable"), element("p", result.error));
  }
  text.append(element("p", image.name, "name"));
  item.append(preview(image, Boolean(result.verdict)), text);
  results.append(item);
  rows.push({ ...result, name: image.name, model: settings.model });
}

function fail(message) {
  status.textContent = "";
  error.textContent = message;
  error.hidden = false;
}

// Why a request was refused, for whoever looks at the page; the server's words are for programs.
function refusal(answer) {
  if (answer.code === "unauthorised") {
    return byId("token").value ? "The access token above is not right." : "Enter the access token above.";
  }
  if (["busy", "no_replica", "not_ready", "too_many_requests"].includes(answer.code)) {
    return "The server is busy. Try again in a moment.";
  }
  return answer.message;
}

// Requests that the server takes: at most so many images and bytes each.
function requests(images) {
  const made = [];
  let bytes = Infinity;
  for (const image of images) {
    const size = image.size + PART_BYTES;
    if (bytes + size > settings.maxBytes || made.at(-1).length === settings.maxImages) {
      made.push([]);
      bytes = 0;
    }
    made.at(-1).push(image);
    bytes += size;
  }
  return made;
}

function summary() {
  const counts = COUNTED.map((verdict) => [rows.filter((row) => row.verdict === verdict).length, verdict])
    .concat([[rows.filter((row) => !row.verdict).length, "not judged"]])
    .filter(([count]) => count > 0)
    .map(([count, words]) => `${count} ${words}`);
  if (rows.length === 1) return `${results.querySelector("h3").textContent}.`;
  return `${rows.length} images: ${counts.join(", ")}.`;
}

async function send(images) {
  const body = new FormData();
  for (const image of images) body.append("image", image, image.name);
  const token = byId("token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch("/v1/score", { method: "POST", body, headers });
  const answer = await response.json();
  if (!answer.results) throw new Refused(refusal(answer.error));
  images.forEach((image, place) => show(image, answer.results[place]));
}

class Refused extends Error {}

async function score(images) {
  results.replaceChildren();
  rows = [];
  error.hidden = tools.hidden = true;
  if (images.length === 0) return;
  const fits = (image) => image.size + PART_BYTES <= settings.maxBytes;
  const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;
  for (const image of images.filter((one) => !fits(one))) {
    const most = megabytes(settings.maxBytes);
    show(image, { code: "too_large", error: `${megabytes(image.size)}; this server takes up to ${most}.` });
  }
  status.textContent = images.length === 1 ? "Looking at it…" : `Looking at ${images.length} images…`;
  try {
    for (const some of requests(images.filter(fits))) {
      await send(some);
      if (rows.length < images.length) status.textContent = `${rows.length} of ${images.length} images judged…`;
    }
    status.textContent = summary();
  } catch (reason) {
    fail(reason instanceof Refused ? reason.message : "The server does not answer. Try again in a moment.");
  }
  tools.hidden = rows.length < 2;
}

function download() {
  const quoted = (value) => (value === undefined ? "" : `"${String(value).replaceAll('"', '""')}"`);
  const lines = [COLUMNS.join(","), ...rows.map((row) => COLUMNS.map((name) => quoted(row[name])).join(","))];
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = "verdicts.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

byId("download").addEventListener("click", download);
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
