// The conversation lives in this page alone: each question carries what was said before it, and nobody keeps it.
import { render } from "./markdown.js";

const find = (id) => document.getElementById(id);
const chat = find("chat");
if (chat) begin();

function begin() {
  const log = find("talk"), question = find("question"), model = find("model"), empty = find("talk-empty");
  const send = find("send"), stop = find("stop"), temperature = find("temperature");
  let messages = [];
  let running = null;
  let conversation = 0;  // a new one must not hear the end of the last
  chat.hidden = false;
  question.focus();
  // The model chosen last, unless the address names one; kept in this browser, as a convenience and nothing more.
  const before = localStorage.getItem("covey model");
  if (!new URLSearchParams(location.search).has("model") && [...model.options].some((one) => one.value === before)) {
    model.value = before;
  }
  model.addEventListener("change", () => localStorage.setItem("covey model", model.value));

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // The reader who scrolled up to read stays there.
  function follow(change) {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    change();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  function bubble(role) {
    const said = make("article", `said ${role}`);
    said.setAttribute("aria-label", role === "user" ? "You" : "Answer");
    const words = said.appendChild(make("div", "words"));
    empty.hidden = true;
    log.append(said);
    log.scrollTop = log.scrollHeight;
    return { said, words };
  }

  function waiting() {
    const dots = make("span", "waiting");
    dots.append(make("i"), make("i"), make("i"));
    return dots;
  }

  function busy(yes) {
    send.hidden = yes;
    stop.hidden = !yes;
    if (!yes) question.focus();
  }

  // What the model says is drawn at most once a frame, however fast it speaks.
  function painter(words) {
    let text = "", due = false;
    const paint = () => {
      due = false;
      follow(() => words.replaceChildren(render(text)));
    };
    return {
      get text() { return text; },
      add(piece) {
        text += piece;
        if (!due) { due = true; requestAnimationFrame(paint); }
      },
      finish: paint,
    };
  }

  function request() {
    const system = find("system").value.trim();
    const body = { model: model.value, messages: system ? [{ role: "system", content: system }, ...messages] : messages };
    if (Number(temperature.value) >= 0) body.temperature = Number(temperature.value);
    if (find("max-tokens").value) body.max_tokens = Number(find("max-tokens").value);
    return JSON.stringify(body);
  }

  async function* lines(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const pieces = (rest + value).split("\n");
      rest = pieces.pop();
      for (const piece of pieces) if (piece.trim()) yield JSON.parse(piece);
    }
  }

  function pause(seconds, signal) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, seconds * 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    });
  }

  function showLoading(words, loading) {
    let box = words.querySelector(".loading-model");
    if (!box) {
      box = make("div", "loading-model");
      box.setAttribute("role", "status");
      box.append(make("p"), make("progress"));
      words.replaceChildren(box);
    }
    const share = loading.progress;
    box.firstChild.textContent = share === null ? `${loading.message} Your answer follows by itself.`
      : `The model is being made ready: ${Math.floor(share * 100)} %. Your answer follows by itself.`;
    const bar = box.lastChild;
    if (share === null) bar.removeAttribute("value"); else bar.value = share;
  }

  // One attempt; returns the seconds to wait before the next, or null when there is nothing more to wait for.
  async function attempt(answer, words, signal) {
    const response = await fetch("/chat/stream", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": chat.dataset.csrf },
      body: answer.body,
      signal,
    });
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      throw Object.assign(new Error(told?.error?.message ?? `The node answered ${response.status}.`), { code: told?.error?.code });
    }
    for await (const line of lines(response)) {
      if (line.loading) { follow(() => showLoading(words, line.loading)); return line.loading.retry_after_seconds; }
      if (line.error) throw Object.assign(new Error(line.error.message), { code: line.error.code });
      if (line.text !== undefined) {
        answer.firstAt ??= performance.now();
        answer.tokens += line.tokens;
        answer.painter.add(line.text);
      }
      if (line.done) { answer.done = line.done; return null; }
    }
    throw new Error("The connection ended before the answer did.");
  }

  async function run() {
    const { said, words } = bubble("assistant");
    words.append(waiting());
    const answer = { body: request(), painter: painter(words), tokens: 0, firstAt: null, startedAt: performance.now(), done: null };
    const mine = conversation;
    running = new AbortController();
    const { signal } = running;
    busy(true);
    let trouble = null;
    try {
      for (;;) {
        const seconds = await attempt(answer, words, signal);
        if (seconds === null) break;
        await pause(seconds, signal);
        answer.startedAt = performance.now();
      }
    } catch (error) {
      trouble = signal.aborted ? null : error;
    }
    if (mine !== conversation) return;
    running = null;
    answer.painter.finish();
    if (answer.painter.text) messages.push({ role: "assistant", content: answer.painter.text });
    follow(() => said.append(facts(answer, trouble)));
    if (trouble) follow(() => said.append(alarm(trouble, said)));
    find("said").textContent = trouble ? trouble.message : "The answer is complete.";
    busy(false);
  }

  function facts(answer, trouble) {
    const row = make("div", "facts");
    const seconds = answer.firstAt === null ? 0 : (performance.now() - answer.firstAt) / 1000;
    const tokens = answer.done?.usage?.completion_tokens ?? answer.tokens;
    const told = [];
    if (tokens) told.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (tokens > 1 && seconds > 0.05) told.push(`${((tokens - 1) / seconds).toFixed(1)} a second`);
    if (answer.firstAt !== null) told.push(`first after ${duration(answer.firstAt - answer.startedAt)}`);
    if (!answer.done && !trouble) told.push("stopped");
    if (answer.done?.finish === "length") told.push("cut at its longest");
    row.append(make("span", "", told.join(" · ")));
    if (answer.painter.text) row.append(tool("Copy", (button) => copyText(answer.painter.text, button)));
    if (!trouble) row.append(tool("Again", () => again(row.parentElement)));
    return row;
  }

  function duration(milliseconds) {
    return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
  }

  function tool(label, action) {
    const button = make("button", "", label);
    button.type = "button";
    button.addEventListener("click", () => action(button));
    return button;
  }

  async function copyText(text, button) {
    const before = button.textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
    catch { button.textContent = "Cannot copy here"; }
    setTimeout(() => { button.textContent = before; }, 2000);
  }

  function alarm(trouble, said) {
    const box = make("div", "alert");
    box.setAttribute("role", "alert");
    box.append(make("span", "", trouble.message));
    if (trouble.code === "unauthenticated") {
      const link = box.appendChild(make("a", "", "Log in"));
      link.href = "/login?next=/chat";
    } else {
      const button = tool("Try again", () => again(said));
      button.className = "small secondary";
      box.append(button);
    }
    return box;
  }

  // Ask the same once more: everything from this answer on is taken back.
  function again(said) {
    if (running) return;
    const all = [...log.querySelectorAll(".said")];
    const from = all.indexOf(said);
    for (const later of all.slice(from)) later.remove();
    const asked = all.slice(0, from).filter((one) => one.classList.contains("user")).length;
    let users = 0;
    messages = messages.filter((message) => {
      if (message.role === "user") users += 1;
      return message.role === "user" ? users <= asked : users < asked;
    });
    run();
  }

  function ask() {
    const text = question.value.trim();
    if (!text || running) return;
    question.value = "";
    grow();
    messages.push({ role: "user", content: text });
    bubble("user").words.textContent = text;
    run();
  }

  function grow() {
    if (CSS.supports("field-sizing", "content")) return;
    question.style.height = "auto";
    question.style.height = `${question.scrollHeight}px`;
  }

  find("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  question.addEventListener("input", grow);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
  stop.addEventListener("click", () => running?.abort());
  find("new").addEventListener("click", () => {
    running?.abort();
    running = null;
    conversation += 1;
    messages = [];
    for (const said of log.querySelectorAll(".said")) said.remove();
    empty.hidden = false;
    busy(false);
  });
  temperature.addEventListener("input", () => {
    find("temperature-value").textContent = Number(temperature.value) < 0 ? "model’s own" : Number(temperature.value).toFixed(1);
  });
  document.addEventListener("click", (event) => {
    const dials = document.querySelector(".dials[open]");
    if (dials && !dials.contains(event.target)) dials.open = false;
  });
  log.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy-code]");
    if (button) copyText(button.closest(".copyable").querySelector("code").textContent, button);
  });
}
