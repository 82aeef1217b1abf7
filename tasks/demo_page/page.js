// What happens on the page: photos go to the server and come back as faces, sliders and speech move the face shown.
import { readGlb } from "/page/glb.js";
import { FaceViewer } from "/page/viewer.js";

const GROUPS = [
  ["Eyes", /^eye/], ["Brows", /^brow/], ["Jaw", /^jaw/], ["Mouth", /^mouth/], ["Cheeks, nose, tongue", /^(cheek|nose|tongue)/],
  ["Shapes", /./],
];
const element = (name) => document.getElementById(name);
const faces = [];
const sliders = new Map();
let current = null;
let wanted = null;
let speaking = 0;
let viewer = null;

window.mien = { faces, sliders, weights: {}, viewer: () => viewer, current: () => current };

start().catch((error) => say(error.message, true));

async function start() {
  viewer = new FaceViewer(element("view"));
  const about = await ask("/api/about");
  element("licence").textContent = `Face model: ${about.face_model.name}, ${about.face_model.licence || "licence not stated"}`;
  for (const [name, choices] of [["emotion", about.emotions], ["style", about.styles]]) {
    element(name).append(...choices.map((choice) => new Option(choice, choice)));
    element(name).closest("label").hidden = !choices.length;
  }
  for (const [name, why] of [["photo", about.no_photos], ["speech", about.no_speech]]) {
    if (!why) continue;
    const drop = element(`${name}-drop`);
    drop.classList.add("off");
    drop.querySelector("span").textContent = why;
    element(`${name}-input`).disabled = true;
  }
  listen();
  await choose(about.mean);
  say(about.no_photos ? "The mean face; photos need a trained model." : "Ready.");
}

function listen() {
  const drops = [["photo", (files) => addPhotos(files)], ["speech", (files) => speak(files[0])]];
  for (const [name, take] of drops) {
    const drop = element(`${name}-drop`), input = element(`${name}-input`);
    input.addEventListener("change", () => {
      if (input.files.length) take([...input.files]);
      input.value = "";
    });
    for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (kind === "drop" && event.dataTransfer.files.length && !input.disabled) take([...event.dataTransfer.files]);
    });
  }
  // A photo dropped beside the field must not replace the page.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  element("clay").addEventListener("click", (event) => {
    viewer.setClay(!viewer.clay);
    event.target.setAttribute("aria-pressed", String(viewer.clay));
  });
  element("reset").addEventListener("click", () => viewer.resetView());
  element("fade").addEventListener("input", (event) => { element("overlay").style.opacity = event.target.value / 100; });
  element("rest").addEventListener("click", () => wear({}));
  element("as-photo").addEventListener("click", () => wear(current.expression));
  element("random").addEventListener("click", () => wear(Object.fromEntries(
    [...sliders.keys()].filter(() => Math.random() < 0.15).map((name) => [name, Math.random()]))));
  const sound = element("sound");
  sound.addEventListener("play", () => {
    cancelAnimationFrame(speaking);
    const follow = () => {
      wear(curveAt(current.speech, sound.currentTime));
      if (!sound.paused && !sound.ended) speaking = requestAnimationFrame(follow);
    };
    follow();
  });
  sound.addEventListener("seeked", () => { if (current.speech) wear(curveAt(current.speech, sound.currentTime)); });
}

async function addPhotos(files) {
  const list = element("faces");
  // One after the other, so that the first is seen as soon as it is there.
  for (const [place, file] of files.entries()) {
    const item = document.createElement("li");
    item.className = "busy";
    item.textContent = `${file.name} …`;
    list.prepend(item);
    say(`Photo ${place + 1} of ${files.length}: ${file.name} …`);
    try {
      const query = new URLSearchParams({ name: file.name, refine: element("refine").checked ? "1" : "0" });
      const answer = await ask(`/api/photos?${query}`, file);
      const buttons = answer.faces.map(faceButton);
      item.className = "";
      item.replaceChildren(...buttons);
      buttons[0].click();
      const count = answer.faces.length === 1 ? "a face" : `${answer.faces.length} faces`;
      say(`${file.name}: ${count} in ${answer.seconds.toFixed(1)} s`);
    } catch (error) {
      item.className = "bad";
      item.textContent = error.message;
      say(error.message, true);
    }
  }
}

function faceButton(face) {
  faces.push(face);
  const button = document.createElement("button");
  button.type = "button";
  const image = new Image();
  image.src = face.overlay;
  image.alt = "";
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = face.name;
  button.append(image, name);
  button.addEventListener("click", () => {
    document.querySelectorAll("#faces button").forEach((one) => one.classList.toggle("chosen", one === button));
    choose(face).catch((error) => say(error.message, true));
  });
  return button;
}

async function choose(face) {
  wanted = face;
  const answer = await fetch(face.mesh);
  if (!answer.ok) throw new Error(`${face.name}: the mesh is not there any more; drop the photo again`);
  const glb = readGlb(await answer.arrayBuffer());
  // Whoever clicks on another face meanwhile wants that one.
  if (wanted !== face) return;
  element("sound").pause();
  await viewer.show(glb);
  if (wanted !== face) return;
  current = face;
  makeSliders(glb.names);
  element("title").textContent = face.name;
  element("comparison").hidden = !face.overlay;
  if (face.overlay) {
    element("photo").src = face.photo;
    element("overlay").src = face.overlay;
  }
  face.expression = glb.weights;
  element("as-photo").disabled = !Object.keys(glb.weights).length;
  wear(glb.weights);
  showSpeech();
  showFiles();
}

function makeSliders(names) {
  sliders.clear();
  const left = new Set(names);
  const groups = GROUPS.map(([title, pattern]) => {
    const own = [...left].filter((name) => pattern.test(name));
    own.forEach((name) => left.delete(name));
    if (!own.length) return null;
    const details = document.createElement("details");
    details.open = true;
    const summary = document.createElement("summary");
    summary.textContent = `${title} (${own.length})`;
    details.append(summary, ...own.map(makeSlider));
    return details;
  });
  element("sliders").replaceChildren(...groups.filter(Boolean));
}

function makeSlider(name) {
  const label = document.createElement("label");
  label.className = "slider";
  const title = document.createElement("span");
  title.textContent = title.title = name;
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: 0, max: 1, step: 0.01, value: 0, name });
  const output = document.createElement("output");
  output.value = "0";
  input.addEventListener("input", () => wear({ ...window.mien.weights, [name]: Number(input.value) }));
  label.append(title, input, output);
  sliders.set(name, { input, output });
  return label;
}

function wear(weights) {
  window.mien.weights = weights;
  viewer.setWeights(weights);
  for (const [name, { input, output }] of sliders) {
    const value = weights[name] ?? 0;
    input.value = value;
    output.value = value ? value.toFixed(2) : "0";
  }
}

function curveAt({ fps, names, weights }, seconds) {
  const at = Math.max(0, Math.min(weights.length - 1, seconds * fps - 0.5));
  const before = Math.floor(at), share = at - before;
  const first = weights[before], second = weights[Math.min(before + 1, weights.length - 1)];
  return Object.fromEntries(names.map((name, i) => [name, (1 - share) * first[i] + share * second[i]]));
}

async function speak(file) {
  const face = current;
  say(`${file.name}: listening …`);
  try {
    const query = new URLSearchParams({
      name: file.name, emotion: element("emotion").value, style: element("style").value, film: element("film").checked ? "1" : "0",
    });
    const answer = await ask(`/api/faces/${face.key}/speech?${query}`, file);
    Object.assign(face, { speech: answer.speech, files: answer.files });
    if (face !== current) return;
    showSpeech();
    showFiles();
    say(`${file.name}: ${answer.speech.seconds.toFixed(1)} s of speech in ${answer.seconds.toFixed(1)} s; press play`);
    // Without a click of its own a browser may keep silent; then the button does it.
    element("sound").play().catch(() => {});
  } catch (error) {
    say(error.message, true);
  }
}

function showSpeech() {
  const sound = element("sound");
  sound.hidden = !current.speech;
  if (current.speech) sound.src = current.speech.sound;
  else sound.removeAttribute("src");
}

function showFiles() {
  const files = current.files ?? [];
  element("nothing").hidden = files.length > 0;
  element("everything").hidden = !files.length;
  element("everything").href = `/api/faces/${current.key}/everything.zip`;
  element("files").replaceChildren(...files.map(({ name, url, bytes }) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    Object.assign(link, { href: url, download: name, textContent: name });
    const size = document.createElement("small");
    size.textContent = ` ${bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`}`;
    item.append(link, size);
    return item;
  }));
}

async function ask(address, body) {
  const answer = await fetch(address, body ? { method: "POST", body } : {}).catch(() => {
    throw new Error("the program that serves this page does not answer; start `mien demo` again");
  });
  const content = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}
