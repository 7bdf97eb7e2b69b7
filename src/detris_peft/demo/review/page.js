// Runs when the component is loaded: `element` is its root, `server` calls the functions of page.py.

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const MAX_REQUEST_BYTES = 99000; // the server refuses requests from 100,000 on
const PLACE = "detris-review"; // in the storage of the tab: where to continue after a reload
const IGNORED_MS = 1000; // pause that ends the typing of a sentence

let shown = null; // the object as the server last sent it, with the version that edits are based on
let rows = []; // its sentences: index among the saved ones or null, saved text, text area
let changed = false; // something was not sent yet
let saving = null; // promise of the running save
let failed = false; // the last save was refused: the page stays at the object
let moving = false;
let held = []; // keys (text) and requests (objects) that wait, in their order, until another object is loaded
let unanswered = false; // the server does not answer
let ignoredUntil = 0; // time until which letters are ignored

// -- server ---------------------------------------------------------------------------------------------------------

async function ask(name, request) {
  if (new Blob([JSON.stringify(request)]).size > MAX_REQUEST_BYTES) {
    return { error: "The sentences are too long to be sent; shorten them." };
  }
  for (;;) {
    const answer = await server[name](request).catch(() => undefined);
    unanswered = !answer;
    if (answer) return answer;
    setState("The server does not answer. Changes are saved once it does; keep this page open.", true);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function save() {
  changed = true;
  setState("Saving ...");
  saving ??= sendChanges().finally(() => { saving = null; });
}

// One request at a time; what is typed meanwhile is sent next, with the version of the answer.
async function sendChanges() {
  const object = shown;
  while (changed) {
    changed = false;
    const sent = rows.map((row) => ({ row, text: row.area.value }));
    const answer = await ask("save", {
      file: object.file,
      number: object.number,
      version: object.version,
      bad_mask: part("flag").checked,
      sentences: sent.map(({ row, text }) => [row.index, text === row.saved ? null : text]),
    });
    if (answer.object) {
      takeOver(answer);
      return;
    }
    failed = Boolean(answer.error);
    if (failed) {
      setState("Not saved", true);
      report(answer.error);
      continue;
    }
    object.version = answer.version;
    object.number = answer.number;
    sent.forEach(({ row, text }, position) => {
      row.index = answer.indices[position];
      const rejected = position in answer.messages;
      row.area.setAttribute("aria-invalid", rejected);
      if (!rejected) row.saved = text;
    });
    const messages = Object.values(answer.messages);
    report(messages.join("\n"));
    if (!changed) setState(messages.length ? "Not everything is saved" : "Saved", messages.length > 0);
  }
}

// Another reviewer changed the object: show the current one, and what was not saved.
function takeOver(answer) {
  const unsaved = rows.filter((row) => row.area.value !== row.saved).map((row) => row.area.value.trim());
  const wanted = rows.map(({ area, saved }) => (area.value === saved ? saved : area.value.trim().replace(/\s+/g, " ")));
  const isSaved = JSON.stringify(wanted.filter((text) => text)) === JSON.stringify(answer.object.sentences)
    && part("flag").checked === answer.object.bad_mask;
  if (focusedRow() >= 0) ignoredUntil = performance.now() + IGNORED_MS; // the rest of the sentence that is typed
  render({ ...shown, ...answer.object });
  // If the server was killed after it had saved, the repeated request differs from what is saved already.
  if (isSaved) {
    setState("Saved");
  } else {
    setState("Not saved", true);
    report([answer.error, ...unsaved.map((text) => `Not saved: ${text}`)].join("\n"));
  }
}

async function go(request) {
  if (moving) {
    held.push(request);
    return;
  }
  moving = true;
  if (failed) save(); // again
  while (saving) await saving;
  if (failed) {
    moving = false;
    held = held.filter(isKey);
    replay();
    return;
  }
  const place = shown ?? JSON.parse(sessionStorage.getItem(PLACE) ?? "{}");
  const answer = await ask("show", {
    split: part("split").value,
    flagged: part("flagged").checked,
    position: request.position,
    file: place.file,
    number: place.number,
    step: request.step,
  });
  while (saving) await saving; // typed meanwhile
  moving = false;
  setSplits(answer.splits);
  part("columns").hidden = !answer.object;
  part("empty").hidden = Boolean(answer.object);
  if (answer.object) {
    const same = isSame(shown, answer.object);
    render(answer.object);
    setState(answer.message);
    if (!same || request.step === undefined) window.scrollTo({ top: 0 });
  } else {
    shown = null;
    part("count").textContent = "0";
    part("position").value = "";
    part("empty").textContent = answer.error || answer.message;
  }
  replay();
}

// Do what the held keys and requests ask for. Keys are those of the page until one of them leads into a sentence.
function replay() {
  while (held.length && !moving) {
    let item = held.shift();
    if (isKey(item)) {
      pressHeld(item);
      continue;
    }
    while (item.step && held[0]?.step) item = { step: item.step + held.shift().step };
    if (item.step !== 0) go(item);
  }
}

function pressHeld(key) {
  const row = rows[focusedRow()];
  if (!row) {
    OUTSIDE_OF_TEXT[key]?.();
  } else if (key in IN_TEXT) {
    IN_TEXT[key](row);
  } else {
    row.area.setRangeText(key, row.area.selectionStart, row.area.selectionEnd, "end");
    row.area.dispatchEvent(new Event("input"));
  }
}

const isKey = (item) => typeof item === "string";

async function showImage(object) {
  const image = part("image");
  image.classList.add("loading");
  const answer = await ask("image", { file: object.file, number: object.number, mask: part("mask").checked });
  if (shown !== object) return; // the reviewer is at another object by now
  image.classList.remove("loading");
  image.hidden = Boolean(answer.error);
  image.src = answer.url ?? "";
  part("image-error").hidden = !answer.error;
  part("image-error").textContent = answer.error ?? "";
}

// -- page -----------------------------------------------------------------------------------------------------------

function render(object) {
  const focused = isSame(shown, object) ? focusedRow() : Math.min(focusedRow(), 0);
  shown = object;
  changed = false;
  failed = false;
  rows = [];
  part("sentences").replaceChildren();
  object.sentences.forEach((text, index) => addRow(text, index));
  if (!rows.length && !object.error) addRow("", null);
  // Otherwise letters that follow would be taken for keys.
  if (focused >= 0) rows[Math.min(focused, rows.length - 1)]?.area.focus();
  part("add").disabled = Boolean(object.error);
  part("flag").checked = object.bad_mask;
  part("position").value = object.position;
  part("position").max = object.count;
  part("count").textContent = object.count;
  part("caption").textContent = [
    object.category,
    object.name,
    `split ${object.split}`,
    `${object.file} line ${object.number}`,
    object.no_target ? "no target" : "",
  ].filter(Boolean).join(" · ");
  report(object.error);
  sessionStorage.setItem(PLACE, JSON.stringify({ file: object.file, number: object.number }));
  showImage(object);
}

const isSame = (first, second) => first?.file === second.file && first?.number === second.number;

const focusedRow = () => rows.findIndex((row) => row.area === document.activeElement);

function addRow(text, index, after) {
  const item = document.createElement("li");
  const area = document.createElement("textarea");
  const remove = document.createElement("button");
  const row = { index, saved: text, area, item };
  area.rows = 1;
  area.maxLength = Math.max(2000, text.length);
  area.value = text;
  area.dir = "auto"; // Arabic and Hebrew are written from right to left
  remove.type = "button";
  remove.textContent = "Delete";
  area.addEventListener("input", () => { fit(area); save(); });
  remove.addEventListener("click", () => deleteRow(row));
  item.append(area, remove);
  rows.splice(after ? rows.indexOf(after) + 1 : rows.length, 0, row);
  part("sentences").insertBefore(item, after ? after.item.nextSibling : null);
  numberRows();
  fit(area);
  return row;
}

function numberRows() {
  rows.forEach((row, position) => {
    row.area.setAttribute("aria-label", `Sentence ${position + 1}`);
    row.item.lastChild.setAttribute("aria-label", `Delete sentence ${position + 1}`);
  });
}

function deleteRow(row) {
  if (row.index !== null && rows.filter((other) => other.index !== null).length === 1) {
    report("The last sentence cannot be deleted: write another one first, or flag the object as a bad mask.");
    return;
  }
  const position = rows.indexOf(row);
  rows.splice(position, 1);
  row.item.remove();
  numberRows();
  (rows[position] ?? rows.at(-1) ?? addRow("", null)).area.focus();
  save();
}

function addAndFocus(after) {
  if (shown && !part("add").disabled) addRow("", null, after).area.focus();
}

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function setSplits(splits) {
  if (!splits || part("split").options.length > 1) return;
  part("split").append(...splits.map((split) => new Option(split, split)));
}

function setState(text, bad = false) {
  part("state").textContent = text;
  part("state").classList.toggle("bad", bad);
}

function report(text) {
  part("message").textContent = text;
  part("message").hidden = !text;
}

// -- events ---------------------------------------------------------------------------------------------------------

const next = () => go({ step: 1 });
const previous = () => go({ step: -1 });
const EVERYWHERE = { PageDown: next, PageUp: previous };
const WITH_ALT = { ArrowRight: next, ArrowLeft: previous };
const OUTSIDE_OF_TEXT = {
  j: next,
  k: previous,
  a: () => addAndFocus(),
  e: () => rows[0]?.area.focus(),
  f: () => part("flag").click(),
  m: () => part("mask").click(),
};
const IN_TEXT = { Enter: (row) => addAndFocus(row), Escape: (row) => row.area.blur() };
const APPLE = /Mac|iP/.test(navigator.platform); // there, Alt with an arrow key moves by words

// Return whether a key waits for the object that is loaded. Steps are requests, which wait by themselves.
function waits(key, row, text) {
  if (!moving || unanswered) return false;
  return row || held.some(isKey) || (!text && "aefm".includes(key));
}

document.addEventListener("keydown", (event) => {
  if (!element.isConnected || event.isComposing || event.ctrlKey || event.metaKey) return;
  const text = event.target.closest?.("textarea, select, input:not([type=checkbox])");
  const row = rows.find((other) => other.area === event.target);
  const isLetter = [...event.key].length === 1 && !event.altKey;
  const canWait = isLetter || event.key in IN_TEXT;
  let action = null;
  if (isLetter && performance.now() < ignoredUntil) action = () => { ignoredUntil = performance.now() + IGNORED_MS; };
  else if (canWait && waits(event.key, row, text)) action = () => held.push(event.key);
  else if (event.altKey) action = APPLE && text ? null : WITH_ALT[event.key];
  else if (row && event.key in IN_TEXT) action = () => IN_TEXT[event.key](row);
  else action = EVERYWHERE[event.key] ?? (text ? null : OUTSIDE_OF_TEXT[event.key]);
  if (!action) return;
  event.preventDefault();
  action();
});
window.addEventListener("beforeunload", (event) => {
  if (saving || failed) event.preventDefault();
});
window.addEventListener("resize", () => rows.forEach((row) => fit(row.area)));
part("next").addEventListener("click", next);
part("previous").addEventListener("click", previous);
part("add").addEventListener("click", () => addAndFocus());
part("flag").addEventListener("change", save);
part("mask").addEventListener("change", () => shown && showImage(shown));
part("split").addEventListener("change", () => go({}));
part("flagged").addEventListener("change", () => go({}));
part("position").addEventListener("change", () => go({ position: part("position").valueAsNumber || 1 }));
go({});
