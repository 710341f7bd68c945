// The chat page's behaviour: the key's way in, one conversation, a streamed answer, failures in plain words.
// The key lives in memory, or in this tab's sessionStorage when asked for; never in the URL or localStorage.
// Whatever the model or the server sends becomes text nodes, never markup. Loaded by index.html only.

/* Texts */

const TEXTS = {
  en: {
    other: "中文", model: "Model", newChat: "New conversation", newShort: "New", settings: "Settings", latest: "Jump to the latest",
    system: "System prompt", systemHint: "How the model should behave, in your words", limit: "Max tokens", limitHint: "At least 1",
    heat: "Temperature", heatHint: "0 is steady, 2 is wild", asModel: "Default", leave: "Forget key",
    welcome: "Welcome", welcomeHint: "Enter your API key to talk to the models on this server.", key: "API key", show: "Show", hide: "Hide",
    keep: "Remember in this tab until it is closed", enter: "Continue", entering: "Checking the key…",
    keyStays: "The key stays in this tab and goes only to this server.",
    talk: "Conversation", hello: "What can I help with?", helloHint: "Your words go to the model picked above, through this server.",
    question: "Your message", ask: "Write a message", send: "Send", stop: "Stop", careful: "Answers can be wrong. Check what matters.",
    you: "You", answer: "Answer", waiting: "Waiting for the answer…", thinking: "Thinking…", answering: "Answering…", done: "Answer complete.",
    copy: "Copy", copied: "Copied", copyCode: "Copy code", code: "Code", retry: "Try again", retryIn: "Try again ({wait})", otherKey: "Enter another key",
    usage: "{in} tokens in, {out} out · {took} s", details: "Details", requestId: "Request {id}",
    stopped: "Stopped. This answer is incomplete.", length: "Cut off at the token limit. You can raise it in the settings.",
    filter: "Ended early by a content rule.", nothing: "The model gave an empty answer.", partial: "The answer above is incomplete.", tryIn: "Try again in {wait}.",
    noKey: "Enter your API key first.", badKey: "The server does not accept this key. Check that it is complete, or ask your administrator for a new one.",
    noNet: "The server can't be reached. Check your connection, then try again.", noRight: "This key may not do that. Pick another model, or ask your administrator.",
    noModel: "This model is not available to your key right now. Pick another one at the top.", noModels: "No model is available to this key. Ask your administrator.",
    tooLong: "The conversation is longer than this model can read. Start a new one, or shorten your message.", tooBig: "The message is too large for the server. Shorten it.",
    badAsk: "The server refused this request. Check the settings and your message.", tooFast: "Too many requests with this key.",
    spent: "The budget of this key is used up. Ask your administrator.", busy: "The model is busy or not ready yet. Try again in a moment.",
    slow: "The model took too long to answer. Try again.", fault: "Something failed on the server. Try again; if it keeps happening, tell your administrator.",
    broke: "The server reported a fault while answering.", cut: "The connection closed before the answer was complete.",
    seconds: "{n} s", minutes: "{n} min",
  },
  zh: {
    other: "EN", model: "模型", newChat: "新对话", newShort: "新对话", settings: "设置", latest: "回到最新",
    system: "系统提示词", systemHint: "用你的话说明模型应如何回答", limit: "最大 token 数", limitHint: "至少为 1",
    heat: "温度", heatHint: "0 最稳定，2 最发散", asModel: "默认", leave: "清除密钥",
    welcome: "欢迎", welcomeHint: "输入 API 密钥，与本服务器上的模型对话。", key: "API 密钥", show: "显示", hide: "隐藏",
    keep: "在此标签页中记住，关闭后清除", enter: "继续", entering: "正在验证密钥…",
    keyStays: "密钥只保留在此标签页，只发送给本服务器。",
    talk: "对话", hello: "有什么可以帮你？", helloHint: "你的内容经本服务器交给上方所选的模型。",
    question: "你的消息", ask: "输入消息", send: "发送", stop: "停止", careful: "回答可能有误，重要内容请核实。",
    you: "你", answer: "回答", waiting: "正在等待回答…", thinking: "正在思考…", answering: "正在回答…", done: "回答完毕。",
    copy: "复制", copied: "已复制", copyCode: "复制代码", code: "代码", retry: "重试", retryIn: "重试（{wait}）", otherKey: "换一个密钥",
    usage: "输入 {in}，输出 {out} token · {took} 秒", details: "详情", requestId: "请求 {id}",
    stopped: "已停止，回答不完整。", length: "已达到 token 上限而截断，可在设置中调高。",
    filter: "因内容规则提前结束。", nothing: "模型给出了空回答。", partial: "以上回答不完整。", tryIn: "请在 {wait}后重试。",
    noKey: "请先输入 API 密钥。", badKey: "服务器不接受此密钥。请检查是否完整，或向管理员申请新的密钥。",
    noNet: "无法连接服务器。请检查网络后重试。", noRight: "此密钥没有相应权限。请换一个模型，或联系管理员。",
    noModel: "此密钥目前不能使用该模型。请在顶部换一个模型。", noModels: "此密钥没有可用的模型。请联系管理员。",
    tooLong: "对话超出了该模型能读取的长度。请开始新对话，或缩短消息。", tooBig: "消息过大，服务器无法接收。请缩短。",
    badAsk: "服务器拒绝了此请求。请检查设置和消息。", tooFast: "此密钥的请求过于频繁。",
    spent: "此密钥的额度已用完。请联系管理员。", busy: "模型繁忙或尚未就绪。请稍后重试。",
    slow: "模型回答超时。请重试。", fault: "服务器出错。请重试；若仍出现，请告知管理员。",
    broke: "服务器在回答过程中出错。", cut: "回答尚未完成，连接已断开。",
    seconds: "{n} 秒", minutes: "{n} 分钟",
  },
};

let lang = "en";

function t(key, words = {}) {
  return TEXTS[lang][key].replace(/\{(\w+)\}/g, (_, name) => (name === "wait" ? span(words.wait) : words[name]));
}

function span(seconds) {
  return seconds < 100 ? t("seconds", { n: Math.ceil(seconds) }) : t("minutes", { n: Math.ceil(seconds / 60) });
}

// Gives a node its text in a way that survives a change of language.
function say(node, key, words) {
  node.dataset.t = key;
  node.words = words;
  node.textContent = t(key, words);
  return node;
}

function speak(language) {
  lang = language;
  document.documentElement.lang = lang === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t, node.words);
  for (const node of document.querySelectorAll("[data-p]")) node.placeholder = t(node.dataset.p);
  for (const node of document.querySelectorAll("[data-l]")) {
    node.ariaLabel = t(node.dataset.l);
    if (node.localName !== "section") node.title = node.ariaLabel;
  }
  $("lang").textContent = t("other");
  $("lang").lang = lang === "zh" ? "en" : "zh-Hans";
}

/* Small tools */

const $ = (id) => document.getElementById(id);

function el(tag, name, ...inside) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...inside);
  return node;
}

function button(key, act) {
  const node = say(el("button", "plain"), key);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

// This tab's storage; a browser may forbid it, then nothing is remembered.
function memory(name, value) {
  try {
    if (value === undefined) return sessionStorage.getItem(name);
    if (value) sessionStorage.setItem(name, value);
    else sessionStorage.removeItem(name);
  } catch {}
  return null;
}

function copier(key, text) {
  return button(key, async ({ target }) => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      // Without a secure context there is only the old way.
      const area = el("textarea", "sr");
      area.value = text();
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      target.focus();
    }
    say(target, "copied");
    aloud(t("copied"));
    setTimeout(() => say(target, key), 1600);
  });
}

// For screen readers: whole blocks, politely, instead of every token. Old words go, so that nobody meets an answer twice.
function aloud(text) {
  const line = el("p", "", text);
  $("spoken").append(line);
  setTimeout(() => line.remove(), 10_000);
}

/* Markdown: blocks and marks as DOM nodes; what isn't known stays as it was written. */

const FENCE = /^ {0,3}(`{3,}|~{3,})(?![`~])([^`]*)$/;
const HEADING = /^ {0,3}#{1,6}\s+(.*)/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(?=\S)/;
const DEEPEST = 8;

const indent = (line) => line.length - line.trimStart().length;
const tabular = (lines, i) => lines[i].includes("|") && /^[\s|:-]*$/.test(lines[i + 1] ?? "") && /\|.*-|-.*\|/.test(lines[i + 1]);
const row = (line) => line.trim().replace(/^\||\|$/g, "").split("|");

function inline(text) {
  const out = [];
  const alone = new Set(); // marks without a partner further on: keeps long texts linear
  const mark = /\\[\\`*_#>|[\]().!+-]|`+|\*\*|\*/g;
  let from = 0;
  for (let hit; (hit = mark.exec(text)); ) {
    const [sign] = hit;
    const start = mark.lastIndex;
    if (sign[0] === "\\") {
      out.push(text.slice(from, hit.index), sign[1]);
      from = start;
      continue;
    }
    const end = alone.has(sign) ? -1 : text.indexOf(sign, start + 1);
    if (end < 0) {
      alone.add(sign);
      continue;
    }
    const code = sign[0] === "`";
    const spaced = /\s/.test(text[start]) || (sign === "*" && (/\s/.test(text[end - 1]) || text[end + 1] === "*" || /\w/.test(text[hit.index - 1] ?? "")));
    if (!code && spaced) continue;
    const inside = text.slice(start, end);
    out.push(text.slice(from, hit.index), code ? el("code", "", inside.trim()) : el(sign === "*" ? "em" : "strong", "", ...inline(inside)));
    from = mark.lastIndex = end + sign.length;
  }
  out.push(text.slice(from));
  return out;
}

// The block that begins at line `i`, and the line after it.
function block(lines, i, depth) {
  const line = lines[i];
  const fence = FENCE.exec(line);
  if (fence) return codeBlock(lines, i, fence);
  const heading = HEADING.exec(line);
  if (heading) return [el("h3", "", ...inline(heading[1].replace(/\s#+\s*$/, ""))), i + 1];
  if (RULE.test(line)) return [el("hr"), i + 1];
  if (depth < DEEPEST && QUOTE.test(line)) {
    let end = i;
    while (end < lines.length && QUOTE.test(lines[end])) end++;
    return [fill(el("blockquote"), lines.slice(i, end).map((l) => l.replace(QUOTE, "")), depth + 1), end];
  }
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, i, depth);
  if (tabular(lines, i)) return table(lines, i);
  let end = i + 1;
  while (end < lines.length && lines[end].trim() && !opens(lines[end]) && !tabular(lines, end)) end++;
  return [el("p", "", ...inline(lines.slice(i, end).join("\n").trim())), end];
}

function opens(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function fill(root, lines, depth) {
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const [node, next] = block(lines, i, depth);
    root.append(node);
    i = next;
  }
  return root;
}

function codeBlock(lines, i, [opening, sign, info]) {
  const [name] = info.trim().split(/\s/);
  const pad = indent(opening);
  let end = i + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(sign) && !lines[end].trim().replaceAll(sign[0], ""))) end++;
  const code = el("code", "", lines.slice(i + 1, end).map((l) => l.slice(Math.min(pad, indent(l)))).join("\n"));
  const pre = el("pre", "", code);
  pre.tabIndex = 0; // a wide block scrolls by keyboard too
  const label = name ? el("span", "", name) : say(el("span"), "code");
  const node = el("div", "code", el("div", "", label, copier("copyCode", () => code.textContent)), pre);
  node.code = code;
  return [node, end + 1];
}

function list(lines, i, depth) {
  const [, pad, sign] = ITEM.exec(lines[i]);
  const numbered = /\d/.test(sign);
  const node = el(numbered ? "ol" : "ul");
  if (numbered) node.start = parseInt(sign, 10);
  const sibling = (line) => {
    const hit = ITEM.exec(line);
    return hit && !RULE.test(line) && hit[1].length <= pad.length && /\d/.test(hit[2]) === numbered ? hit : null;
  };
  for (let hit; i < lines.length && (hit = sibling(lines[i])); ) {
    const wide = hit[0].length;
    const inner = [lines[i++].slice(wide)];
    while (i < lines.length) {
      let next = i;
      while (next < lines.length && !lines[next].trim()) next++;
      const inside = next === lines.length || indent(lines[next]) > pad.length;
      if (!inside && (next > i || opens(lines[next]))) {
        if (sibling(lines[next])) i = next;
        break;
      }
      for (; i <= next && i < lines.length; i++) inner.push(lines[i].slice(Math.min(wide, indent(lines[i]))));
    }
    node.append(fill(el("li"), inner, depth + 1));
  }
  return [node, i];
}

function table(lines, i) {
  const line = (cell, text) => el("tr", "", ...row(text).map((words) => el(cell, "", ...inline(words.trim()))));
  const body = el("tbody");
  const head = el("thead", "", line("th", lines[i]));
  for (i += 2; i < lines.length && lines[i].includes("|"); i++) body.append(line("td", lines[i]));
  const node = el("div", "scroll", el("table", "", head, body));
  node.tabIndex = 0;
  return [node, i];
}

// Draws a growing text: finished blocks are left alone, only the open end is drawn again.
class Drawing {
  from = 0;
  open = [];

  constructor(root) {
    this.root = root;
  }

  draw(text, complete) {
    const lines = text.slice(this.from).split("\n");
    const before = this.open;
    this.open = [];
    for (let i = 0, at = this.from; i < lines.length; ) {
      let [node, next] = lines[i].trim() ? block(lines, i, 0) : [null, i + 1];
      while (i < next) at += (lines[i++] ?? "").length + 1;
      if (!node) continue;
      const old = before.shift();
      // A growing code block keeps its place in the page, and so its focus and scroll position.
      if (old?.code && node.code) {
        old.code.textContent = node.code.textContent;
        old.querySelector("span").replaceWith(node.querySelector("span"));
        node = old;
      } else if (old) old.replaceWith(node);
      else this.root.append(node);
      // The last line may still grow, so it settles nothing.
      if (complete || next < lines.length - 1) {
        this.from = at;
        aloud((node.code ?? node).innerText);
      } else this.open.push(node);
    }
    for (const old of before) old.remove();
  }
}

/* The API */

class Failure extends Error {
  constructor(key, more) {
    super(key);
    Object.assign(this, { key }, more);
  }
}

const BY_CODE = {
  invalid_api_key: "badKey", insufficient_permissions: "noRight", model_not_found: "noModel", context_length_exceeded: "tooLong", request_too_large: "tooBig",
  rate_limit_exceeded: "tooFast", insufficient_quota: "spent", credit_balance_exhausted: "spent", slow_down: "busy", server_is_overloaded: "busy",
};
const BY_STATUS = { 400: "badAsk", 401: "badKey", 403: "noRight", 404: "noModel", 408: "slow", 413: "tooBig", 422: "badAsk", 429: "tooFast", 503: "busy", 504: "slow" };

function failure(error, otherwise, more) {
  const detail = typeof error?.message === "string" ? error.message : "";
  const long = /context (length|size|window)/i.test(detail) && "tooLong";
  return new Failure(BY_CODE[error?.code] ?? (long || otherwise), { detail, ...more });
}

// Seconds to wait by the server's word, or undefined.
function waitOf(headers) {
  const after = headers.get("retry-after");
  const seconds = [parseFloat(headers.get("retry-after-ms")) / 1000, Number(after ?? NaN), (Date.parse(after) - Date.now()) / 1000].find(Number.isFinite);
  return seconds > 0 ? seconds : undefined;
}

async function call(path, key, signal, body) {
  if (!/^[!-~]+$/.test(key)) throw new Failure("badKey"); // a header can't carry it
  const headers = { Authorization: `Bearer ${key}` };
  if (body) headers["Content-Type"] = "application/json";
  const how = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), cache: "no-store", credentials: "omit", redirect: "error" };
  const reply = await fetch(path, how).catch(() => {
    throw new Failure("noNet");
  });
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => null);
  throw failure(said?.error, BY_STATUS[reply.status] ?? "fault", { wait: waitOf(reply.headers), id: reply.headers.get("x-request-id") });
}

// The events of a body, by the rules of server-sent events: any line end, split anywhere; comments and a cut-off last event are dropped.
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  let name = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => {
        throw new Failure("cut");
      });
      // A CR at the end may be half of a CRLF: it waits for what follows.
      rest += done ? (rest.endsWith("\r") ? "\n" : "") : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (field === "data") data.push(text);
        else if (field === "event") name = text;
        else if (line === "") {
          if (data.length) yield { name, data: data.join("\n") };
          data = [];
          name = "";
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/* The conversation */

let key = "";
let turns = []; // { question, text, view }
let live = null; // the AbortController of the answer under way
let stick = true; // the reader is at the end and wants to stay there

function follow() {
  if (stick) scrollTo(0, document.documentElement.scrollHeight);
  $("latest").hidden = stick;
}

function busy(controller) {
  const [shown, gone] = controller ? [$("stop"), $("send")] : [$("send"), $("stop")];
  const held = document.activeElement === gone;
  live = controller;
  shown.hidden = false;
  gone.hidden = true;
  if (held) (controller || matchMedia("(pointer: coarse)").matches ? shown : $("question")).focus();
}

function request(question) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) if (turn.text) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.text });
  messages.push({ role: "user", content: question });
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  if ($("limit").value) body.max_tokens = $("limit").valueAsNumber;
  if ($("heat").value) body.temperature = $("heat").valueAsNumber;
  return body;
}

async function ask(question) {
  const body = request(question);
  const answer = el("div", "answer");
  const waiting = say(el("p", "waiting"), "waiting");
  const view = el("div", "turn", say(el("h2", "sr"), "you"), el("div", "asked", question), say(el("h2", "sr"), "answer"), waiting, answer);
  turns.at(-1)?.view.querySelector(".act")?.remove();
  const turn = { question, text: "", view };
  turns.push(turn);
  $("empty").hidden = true;
  $("turns").append(view);
  answer.ariaBusy = "true";
  stick = true;
  follow();
  aloud(t("answering"));

  const controller = new AbortController();
  const drawing = new Drawing(answer);
  const began = performance.now();
  let [frame, usage, finish, complete, problem] = [0];
  const draw = (last) => {
    frame = 0;
    drawing.draw(turn.text, last);
    follow();
  };
  busy(controller);
  try {
    const reply = await call("/v1/chat/completions", key, controller.signal, body);
    for await (const { name, data } of events(reply.body)) {
      if (complete) continue;
      if (data === "[DONE]") {
        // The server closes now; if it doesn't, we do.
        complete = true;
        setTimeout(() => controller.abort(), 2000);
        continue;
      }
      const chunk = parse(data);
      if (!chunk || chunk.error || name === "error") throw failure(chunk?.error ?? chunk, "broke", { id: reply.headers.get("x-request-id") });
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      finish = choice?.finish_reason ?? finish;
      const { content, refusal, reasoning_content, reasoning } = choice?.delta ?? {};
      if ((reasoning_content ?? reasoning) && !turn.text) say(waiting, "thinking");
      if (!(content || refusal)) continue;
      turn.text += content || refusal;
      waiting.remove();
      frame ||= requestAnimationFrame(() => draw(false));
    }
    if (!complete && !finish) throw new Failure("cut");
  } catch (fault) {
    if (!(fault instanceof Failure)) console.error(fault);
    if (!complete) problem = controller.signal.aborted ? new Failure("stopped") : fault instanceof Failure ? fault : new Failure("cut");
  }
  cancelAnimationFrame(frame);
  if (live === controller) busy(null);
  if (!view.isConnected) return; // a new conversation began meanwhile
  waiting.remove();
  draw(true);
  answer.ariaBusy = null;
  const mark = problem?.key === "stopped" ? "stopped" : { length: "length", content_filter: "filter" }[finish] ?? (turn.text ? null : "nothing");
  if (problem && problem.key !== "stopped") view.append(trouble(turn, problem));
  else if (mark) view.append(say(el("p", "note mark"), mark));
  if (turn.text) view.append(meta(turn, usage, performance.now() - began));
  aloud(problem ? t(problem.key) : t("done"));
  follow();
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function meta(turn, usage, took) {
  const line = el("div", "meta", copier("copy", () => turn.text));
  const words = { in: usage?.prompt_tokens, out: usage?.completion_tokens, took: (took / 1000).toFixed(1) };
  if (usage) line.append(say(el("span", "usage"), "usage", words));
  return line;
}

// A failure in plain words, the server's own below, and the one thing to do about it.
function trouble(turn, problem) {
  const text = el("p", "", say(el("span"), problem.key));
  if (problem.wait) text.append(" ", say(el("span"), "tryIn", { wait: problem.wait }));
  if (turn.text) text.append(" ", say(el("span"), "partial"));
  const note = el("div", "note bad", text);
  if (problem.detail || problem.id) {
    const detail = el("div", "detail", problem.detail);
    if (problem.id) detail.append(el("br"), say(el("span"), "requestId", { id: problem.id }));
    note.append(el("details", "", say(el("summary"), "details"), detail));
  }
  const retry = () => {
    turns.pop();
    turn.view.remove();
    $("question").focus();
    ask(turn.question);
  };
  const act = { badKey: ["otherKey", () => door("")], tooLong: ["newChat", renew], spent: null }[problem.key];
  if (act !== null) {
    const again = button(...(act ?? ["retry", retry]));
    again.classList.add("act");
    if (problem.wait && !act) countdown(again, problem.wait);
    note.append(again);
  }
  if (problem.key === "noModel") models(key).catch(() => {});
  return note;
}

function countdown(again, wait) {
  const until = performance.now() + wait * 1000;
  const tick = () => {
    const left = (until - performance.now()) / 1000;
    again.disabled = left > 0;
    if (left <= 0) say(again, "retry");
    else {
      say(again, "retryIn", { wait: left });
      if (again.isConnected || left > wait - 1) setTimeout(tick, Math.min(1000, left * 1000));
    }
  };
  tick();
}

function renew() {
  live?.abort();
  busy(null);
  turns = [];
  $("turns").replaceChildren();
  $("spoken").replaceChildren();
  $("empty").hidden = false;
  $("question").focus();
}

/* The way in and out */

async function models(withKey) {
  const reply = await call("/v1/models", withKey, AbortSignal.timeout(30_000));
  const names = ((await reply.json().catch(() => null))?.data ?? []).map((model) => String(model.id));
  if (!names.length) throw new Failure("noModels");
  const chosen = $("model").value || memory("guan.model");
  $("model").replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

function show(inside) {
  $("door").hidden = inside;
  $("tools").hidden = $("talk").hidden = $("ask").hidden = !inside;
  $("settings").open = false;
}

// Back to the key's field; the conversation stays as it is.
function door(problem) {
  key = "";
  memory("guan.key", "");
  show(false);
  if (problem) say($("door-error"), problem.key, problem.words);
  $("key").focus();
}

async function enter(typed) {
  const wrong = $("door-error");
  wrong.textContent = "";
  delete wrong.dataset.t;
  $("key").ariaInvalid = null;
  say($("enter"), "entering").disabled = true;
  try {
    if (!typed) throw new Failure("noKey");
    await models(typed);
    key = typed;
    memory("guan.key", $("keep").checked ? key : "");
    $("key").value = "";
    show(true);
    $("question").focus();
  } catch (fault) {
    const problem = fault instanceof Failure ? fault : new Failure("fault");
    show(false);
    say(wrong, problem.key);
    if (problem.wait) wrong.append(" ", t("tryIn", { wait: problem.wait }));
    if (problem.key === "badKey") memory("guan.key", "");
    $("key").ariaInvalid = "true";
    $("key").focus();
  }
  say($("enter"), "enter").disabled = false;
}

function submit() {
  const question = $("question").value.trim();
  const wrong = ["limit", "heat"].map($).find((input) => !input.checkValidity());
  if (live || !question) return;
  if (wrong) {
    wrong.ariaInvalid = "true";
    $("settings").open = true;
    wrong.focus();
    return;
  }
  $("question").value = "";
  grow();
  ask(question);
}

function grow() {
  const { style } = $("question");
  style.height = "auto";
  style.height = `${$("question").scrollHeight}px`;
}

function listen() {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("door", "submit", (event) => {
    event.preventDefault();
    enter($("key").value.trim());
  });
  on("ask", "submit", (event) => {
    event.preventDefault();
    submit();
  });
  on("peek", "click", () => {
    const hidden = $("key").type === "text";
    $("key").type = hidden ? "password" : "text";
    $("peek").ariaPressed = String(!hidden);
    say($("peek"), hidden ? "show" : "hide");
  });
  on("question", "keydown", (event) => {
    // 229: the Enter that ends a word of an input method.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  on("question", "input", grow);
  on("stop", "click", () => live?.abort());
  on("new", "click", renew);
  on("latest", "click", () => {
    stick = true;
    follow();
  });
  on("leave", "click", () => {
    renew();
    door();
  });
  on("model", "change", () => memory("guan.model", $("model").value));
  on("lang", "click", () => {
    speak(lang === "zh" ? "en" : "zh");
    memory("guan.lang", lang);
  });
  for (const id of ["limit", "heat"]) on(id, "input", ({ target }) => (target.ariaInvalid = null));
  addEventListener("scroll", () => {
    stick = document.documentElement.scrollHeight - innerHeight - scrollY < 64;
    $("latest").hidden = stick;
  }, { passive: true });
  document.addEventListener("click", ({ target }) => {
    if (!$("settings").contains(target)) $("settings").open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    if ($("settings").open) {
      $("settings").open = false;
      $("settings").firstElementChild.focus();
    } else live?.abort();
  });
}

const known = memory("guan.lang") ?? navigator.languages.find((name) => /^(zh|en)\b/i.test(name)) ?? "en";
speak(known.slice(0, 2).toLowerCase());
listen();
const kept = memory("guan.key");
if (kept) {
  $("keep").checked = true;
  enter(kept);
} else show(false);
