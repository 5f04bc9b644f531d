// The page's one conversation: what is asked, what comes back, and what is kept.

import { Refused, chat, servedModel } from "./api.js";
import { forget, keep, kept } from "./store.js";
import { showRegions, showTurn, update } from "./talk.js";
import { label, say, switchLanguage } from "./words.js";

const get = (id) => document.getElementById(id);
const talk = get("talk");
const question = get("question");
let turns = [];
let tray = [];
let key = sessionStorage.getItem("key") || "";
let running = null;

function news(text) {
  get("news").textContent = text;
}

function render() {
  label();
  talk.replaceChildren();
  if (!turns.length) {
    const hint = document.createElement("p");
    hint.className = "welcome";
    hint.textContent = say("welcome");
    talk.append(hint);
  }
  for (const turn of turns) {
    const article = showTurn(talk, turn);
    if (turn.regions?.length) showRegions(talk, article, turn);
  }
  showTray();
}

function showTray() {
  get("tray").replaceChildren(
    ...tray.map((medium, i) => {
      const item = document.createElement("li");
      const view = document.createElement(medium.kind === "video" ? "video" : "img");
      view.src = medium.url;
      if (medium.kind !== "video") view.alt = medium.name;
      const away = document.createElement("button");
      away.type = "button";
      away.textContent = "×";
      away.setAttribute("aria-label", say("remove", medium.name));
      away.onclick = () => {
        tray.splice(i, 1);
        showTray();
        question.focus();
      };
      item.append(view, away);
      return item;
    }),
  );
}

function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Takes files as they are: the server measures boxes in the pixels of what it is sent. */
async function take(files) {
  for (const file of files) {
    const kind = file.type.split("/")[0];
    if (kind !== "image" && kind !== "video") {
      news(say("unreadable", file.name));
      continue;
    }
    tray.push({ name: file.name, kind, url: await asUrl(file) });
  }
  showTray();
  question.focus();
}

function content(turn) {
  const media = (turn.media ?? []).map((medium) => {
    const type = medium.kind === "video" ? "video_url" : "image_url";
    return { type, [type]: { url: medium.url } };
  });
  return media.length ? [...media, { type: "text", text: turn.text }] : turn.text;
}

async function save() {
  try {
    await keep(turns.map(({ busy, ...rest }) => rest));
  } catch {
    news(say("unsaved"));
  }
}

const seconds = (ms) => (ms / 1000).toFixed(ms < 10000 ? 2 : 1);

/** Reads one answer into `turn`. */
async function listen(turn, article, body, signal) {
  const begun = performance.now();
  let first = null;
  let usage = null;
  for await (const event of chat(body, key, signal)) {
    usage = event.usage ?? usage;
    turn.seen = event.foveal?.media ?? turn.seen;
    const choice = event.choices[0];
    if (!choice) continue;
    if (choice.delta.content) {
      first ??= performance.now();
      turn.text += choice.delta.content;
      update(article, turn);
      article.scrollIntoView({ block: "end" });
    }
    turn.regions.push(...(choice.delta.boxes ?? []), ...(choice.delta.points ?? []));
    turn.end = choice.finish_reason ?? turn.end;
  }
  const all = performance.now() - begun;
  const rest = Math.max(1, all - ((first ?? begun) - begun));
  const said = usage?.completion_tokens ?? 0;
  const rate = said > 1 ? ((1000 * (said - 1)) / rest).toFixed(1) : "–";
  turn.note = usage
    ? say("cost", usage.prompt_tokens, said, seconds((first ?? performance.now()) - begun), seconds(all), rate)
    : "";
  const sizes = (turn.seen ?? []).map((m) => say("seen", ...m.original_size, ...m.processed_size));
  turn.note = [turn.end === "length" ? say("cut") : "", turn.note, ...sizes].filter(Boolean).join(" · ");
}

async function ask() {
  const text = question.value.trim();
  if (running) return;
  if (!text) {
    news(say("noQuestion"));
    question.focus();
    return;
  }
  const own = { role: "user", text, media: tray };
  const turn = { role: "assistant", text: "", regions: [], busy: true };
  if (!turns.length) talk.replaceChildren();
  turns.push(own);
  const talked = turns; // another one, once a new conversation has begun
  showTurn(talk, own);
  const messages = turns.map((t) => ({ role: t.role, content: content(t) }));
  const pixels = Number(get("pixels").value);
  const article = showTurn(talk, turn);
  [question.value, tray] = ["", []];
  showTray();
  news("");
  running = new AbortController();
  busy(true);
  try {
    await listen(turn, article, { messages, ...(pixels ? { max_pixels: pixels } : {}) }, running.signal);
    talked.push(turn);
  } catch (error) {
    if (turns !== talked) {
      // Nobody waits for it any more.
    } else if (error.name === "AbortError" && turn.text) {
      turn.note = say("stopped");
      talked.push(turn);
    } else {
      // Nothing was said: the question goes back to where it was written.
      turns.pop();
      [question.value, tray] = [text, own.media];
      article.previousElementSibling.remove();
      article.remove();
      showTray();
      if (error.name !== "AbortError") news(reason(error));
      if (error.status === 401) get("lock").showModal();
    }
  } finally {
    running = null;
    delete turn.busy;
  }
  try {
    if (article.isConnected) {
      update(article, turn);
      if (turn.regions.length) showRegions(talk, article, turn);
      article.scrollIntoView({ block: "end" });
    }
    await save();
  } finally {
    busy(false);
  }
  question.focus();
}

function reason(error) {
  if (error instanceof Refused) return error.message || say("badAnswer");
  return error instanceof TypeError ? say("unreachable") : String(error.message ?? error);
}

function busy(on) {
  get("send").disabled = on;
  get("stop").hidden = !on;
}

/** Sizes to choose from: halves of the most that the server allows. */
function offer(model) {
  const most = model.foveal.max_pixels;
  get("pixels").disabled = !most; // some models see every picture at one size
  const sizes = !most ? [] : [most, most / 2, most / 4, most / 8, most / 16].map(Math.round);
  const pixels = get("pixels");
  const chosen = pixels.value;
  pixels.replaceChildren(new Option(say("asModel"), ""), ...sizes.map((n) => new Option(say("upTo", (n / 1e6).toFixed(2)), n)));
  pixels.value = chosen;
}

let served = null;

async function meet() {
  try {
    served = await servedModel(key);
    get("model").textContent = served.id;
    offer(served);
    news("");
  } catch (error) {
    news(reason(error));
    if (error.status === 401) get("lock").showModal();
  }
}

function wire() {
  get("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  get("stop").onclick = () => running?.abort();
  get("add").onclick = () => get("files").click();
  get("files").onchange = async (event) => {
    await take(event.target.files);
    event.target.value = "";
  };
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      take(event.clipboardData.files);
    }
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files);
  });
  get("language").onclick = () => {
    switchLanguage();
    render();
    if (served) offer(served);
  };
  get("theme").onclick = () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    theme(dark ? "light" : "dark");
  };
  get("fresh").onclick = async () => {
    running?.abort();
    [turns, tray] = [[], []];
    render();
    question.focus();
    try {
      await forget();
    } catch {
      // Nothing of it was kept then.
    }
  };
  get("lock").addEventListener("close", () => {
    key = get("key").value;
    sessionStorage.setItem("key", key);
    meet();
  });
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  sessionStorage.setItem("theme", name);
  get("theme").setAttribute("aria-pressed", String(name === "dark"));
}

if (sessionStorage.getItem("theme")) theme(sessionStorage.getItem("theme"));
wire();
try {
  turns = await kept();
} catch {
  news(say("unsaved"));
}
render();
await meet();
document.body.dataset.ready = "yes";
question.focus();
