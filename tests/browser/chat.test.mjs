// What the chat page does in a real Chromium, against a running server. The first tests talk to the real model behind it;
// the later ones load the same page and policy but answer its requests inside the page, so that every odd stream and
// refusal can be shown. Run by scripts/test with GUAN_URL and GUAN_KEY; GUAN_SHOTS names a folder for pictures.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

const { GUAN_URL, GUAN_KEY, GUAN_CHROMIUM = "/usr/bin/chromium", GUAN_SHOTS } = process.env;
const PATIENCE = 120_000; // a small model on two busy cores
const FLAGS = [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

if (!GUAN_URL || !GUAN_KEY) throw new Error("set GUAN_URL (https://127.0.0.1:8443) and GUAN_KEY (a key of that server)");
if (GUAN_SHOTS) mkdirSync(GUAN_SHOTS, { recursive: true });

let browser;
// Playwright gives each launch a profile folder of its own and removes it at the end.
before(async () => {
  browser = await chromium.launch({ executablePath: GUAN_CHROMIUM, args: FLAGS });
});
after(() => browser?.close());

/** A fresh page: its console troubles and policy violations are collected in `page.troubles`. `stub` answers requests inside the page. */
async function open({ stub, ...options } = {}) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, locale: "en-US", viewport: { width: 1180, height: 820 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const page = await context.newPage();
  page.troubles = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) page.troubles.push(message.text());
  });
  page.on("pageerror", (error) => page.troubles.push(String(error)));
  await page.exposeFunction("violated", (what) => page.troubles.push(`policy: ${what}`));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => window.violated(`${event.violatedDirective} ${event.blockedURI}`));
  });
  if (stub) await page.addInitScript(answerInside, stub);
  await page.goto(GUAN_URL);
  return page;
}

/**
 * Runs in the page: answers `fetch` from a list of replies, one a call (the last one stays). A reply has `status`, `headers`,
 * `chunks` (text, or bytes as numbers) and `hold`: the body stays open after them. `fail` is a dead network. Bodies sent are kept in `window.sent`.
 */
function answerInside({ models, replies }) {
  window.sent = [];
  window.fetch = async (path, { headers, body, signal } = {}) => {
    if (path === "/v1/models") return Response.json({ object: "list", data: models.map((id) => ({ id, object: "model" })) });
    window.sent.push({ path, headers, body: JSON.parse(body) });
    const reply = replies.length > 1 ? replies.shift() : replies[0];
    if (reply.fail) throw new TypeError("Failed to fetch");
    const stream = new ReadableStream({
      async start(out) {
        signal?.addEventListener("abort", () => {
          try {
            out.error(new DOMException("aborted", "AbortError"));
          } catch {}
        });
        for (const chunk of reply.chunks ?? []) {
          out.enqueue(typeof chunk === "string" ? new TextEncoder().encode(chunk) : new Uint8Array(chunk));
          await new Promise((next) => setTimeout(next)); // one chunk a turn of the page's loop
        }
        if (reply.cut) out.error(new TypeError("network error"));
        else if (!reply.hold) out.close();
      },
    });
    return new Response(stream, { status: reply.status ?? 200, headers: reply.headers });
  };
}

const frame = (content, finish_reason = null) => `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content }, finish_reason }] })}\n\n`;
const refusal = (status, code, headers = {}, message = "The server's own words.") => ({
  status,
  headers: { "content-type": "application/json", "x-request-id": "req_123", ...headers },
  chunks: [JSON.stringify({ error: { message, type: "invalid_request_error", param: null, code } })],
});
const stubbed = (...replies) => ({ stub: { models: ["one", "two"], replies } });

async function enter(page, key = GUAN_KEY) {
  await page.getByLabel(/API/).fill(key);
  await page.locator("#enter").click();
}

async function inside(options, key) {
  const page = await open(options);
  await enter(page, key ?? (options?.stub ? "sk-guan-stub" : GUAN_KEY));
  await page.locator("#question").waitFor();
  return page;
}

async function ask(page, question) {
  await page.locator("#question").fill(question);
  await page.locator("#question").press("Enter");
}

/** From now on the page's questions carry these members too: what makes a model's answer sure. */
async function alter(page, more) {
  await page.unrouteAll();
  await page.route("**/v1/chat/completions", (route) => {
    const asked = route.request().postDataJSON();
    return route.continue({ postData: { ...asked, ...more } });
  });
}

/** Waits until the answer is over: the send button is back. */
const settled = (page) => page.locator("#send").waitFor();
const lastTurn = (page) => page.locator(".turn").last();
const shot = (page, name) => GUAN_SHOTS && page.screenshot({ path: join(GUAN_SHOTS, `${name}.png`) });
const clean = (page) => assert.deepEqual(page.troubles, []);

async function accessible(page, where) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(grave.map(({ id, nodes }) => `${where}: ${id}: ${nodes.map((node) => node.html).join(" ")}`), []);
}

describe("with the real model", () => {
  let page;

  test("key, models, question, streamed answer, usage", async () => {
    page = await open();
    await shot(page, "door-light");
    await enter(page);
    await page.locator("#question").waitFor();
    assert.ok((await page.locator("#model option").count()) >= 1);
    assert.ok(await page.locator("#model").inputValue());

    await page.evaluate(() => {
      window.lengths = new Set();
      new MutationObserver(() => {
        const text = document.querySelector(".answer")?.textContent ?? "";
        if (text) window.lengths.add(text.length);
      }).observe(document.querySelector("#turns"), { childList: true, characterData: true, subtree: true });
    });
    await page.locator("#settings > summary").click();
    await page.locator("#limit").fill("160");
    await page.keyboard.press("Escape");
    // The likeliest words: a small model that draws them may say nothing at all.
    await alter(page, { temperature: 0 });
    await ask(page, "Explain in a few sentences why the sky is blue.");
    await page.locator(".answer:not(:empty)").waitFor();
    await settled(page);
    const text = await page.locator(".answer").innerText();
    assert.ok(text.trim().length > 0);
    assert.ok((await page.evaluate(() => window.lengths.size)) >= 2, "the answer grew while it was written");
    assert.match(await page.locator(".usage").innerText(), /^[1-9]\d* tokens in, [1-9]\d* out/);
    assert.equal(await page.locator(".note.bad").count(), 0);
    await shot(page, "answer-light");
    await accessible(page, "answer, light");
    clean(page);
  });

  test("stop keeps what was written and frees the input", async () => {
    await page.locator("#settings > summary").click();
    await page.locator("#limit").fill("1024");
    await page.keyboard.press("Escape");
    // A small model may end at once, or say nothing: here one token, whichever it is, wins until the limit.
    await alter(page, { temperature: 0, logit_bias: { 5000: 100 } });
    const before = await page.locator(".turn").count();
    await ask(page, "Write a very long and detailed story about a gatekeeper, with many chapters.");
    await page.locator(".turn").nth(before).locator(".answer:not(:empty)").waitFor();
    await page.locator("#stop").click();
    await settled(page);
    await page.unrouteAll();
    assert.match(await lastTurn(page).locator(".note.mark").innerText(), /^Stopped/);
    assert.ok((await lastTurn(page).locator(".answer").innerText()).trim().length > 0);
    assert.equal(await page.evaluate(() => document.activeElement.id), "question");
    await page.locator("#question").fill("ready again");
    assert.equal(await page.locator("#question").inputValue(), "ready again");
    await shot(page, "stopped-light");
    clean(page);
  });

  test("the key is kept in memory only, unless asked", async () => {
    const stores = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href]));
    assert.ok(!stores.includes(GUAN_KEY), "no trace of the key outside the page's memory");
    await page.context().close();
  });

  test("a wrong key is told in plain words", async () => {
    const wrong = await open();
    await enter(wrong, "sk-guan-000000000000_wrong");
    const said = wrong.locator("#door-error:not(:empty)");
    await said.waitFor();
    assert.match(await said.innerText(), /does not accept this key/);
    assert.equal(await wrong.locator("#key").getAttribute("aria-invalid"), "true");
    assert.equal(await wrong.evaluate(() => document.activeElement.id), "key");
    await shot(wrong, "wrong-key");
    // Chromium itself writes one line about the 401; nothing else may be there.
    assert.deepEqual(wrong.troubles.filter((text) => !/status of 401/.test(text)), []);
    await wrong.context().close();
  });
});

describe("streams", () => {
  const whole = [frame("Two "), ": ping\n\n", frame("words 关"), frame("", "stop"),
    'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n', "data: [DONE]\n\n"].join("");

  for (const [name, text] of [["LF", whole], ["CRLF", whole.replaceAll("\n", "\r\n")], ["CR", whole.replaceAll("\n", "\r")]]) {
    test(`one byte at a time, lines ended by ${name}`, async () => {
      const page = await inside(stubbed({ chunks: [...new TextEncoder().encode(text)].map((byte) => [byte]) }));
      await ask(page, "hello");
      await page.locator(".usage").waitFor();
      assert.equal(await page.locator(".answer").innerText(), "Two words 关");
      assert.match(await page.locator(".usage").innerText(), /^3 tokens in, 2 out/);
      clean(page);
      await page.context().close();
    });
  }

  test("an error event keeps the partial answer and marks it", async () => {
    const error = { error: { message: "The engine stopped.", type: "server_error", param: null, code: null } };
    const page = await inside(stubbed({ chunks: [frame("Half an ans"), `data: ${JSON.stringify(error)}\n\ndata: [DONE]\n\n`] }, { chunks: [whole] }));
    await ask(page, "hello");
    await page.locator(".note.bad").waitFor();
    assert.equal(await page.locator(".answer").innerText(), "Half an ans");
    assert.match(await page.locator(".note.bad").innerText(), /fault while answering.*incomplete/);
    await shot(page, "broken-light");
    await page.getByRole("button", { name: "Try again" }).click();
    await page.locator(".usage").waitFor();
    assert.equal(await page.locator(".turn").count(), 1, "the retry takes the place of the broken answer");
    const { body } = (await page.evaluate(() => window.sent)).at(-1);
    assert.deepEqual(body.messages, [{ role: "user", content: "hello" }]);
    await page.context().close();
  });

  for (const [name, reply] of [
    ["an end without [DONE]", { chunks: [frame("Half")] }],
    ["a cut connection", { chunks: [frame("Half")], cut: true }],
  ]) {
    test(`${name} is not taken for success`, async () => {
      const page = await inside(stubbed(reply));
      await ask(page, "hello");
      await page.locator(".note.bad").waitFor();
      assert.match(await page.locator(".note.bad").innerText(), /connection closed before/);
      assert.equal(await page.locator(".answer").innerText(), "Half");
      clean(page);
      await page.context().close();
    });
  }

  test("Escape stops, focus stays in the message, the partial answer goes along with the next question", async () => {
    const page = await inside(stubbed({ chunks: [frame("Half")], hold: true }, { chunks: [whole] }));
    await ask(page, "first");
    await page.locator(".answer:not(:empty)").waitFor();
    await page.keyboard.press("Escape");
    await page.locator(".note.mark").waitFor();
    assert.match(await page.locator(".note.mark").innerText(), /^Stopped/);
    assert.equal(await page.evaluate(() => document.activeElement.id), "question");
    await ask(page, "second");
    await page.locator(".usage").waitFor();
    const { body } = (await page.evaluate(() => window.sent)).at(-1);
    assert.deepEqual(body.messages.map(({ content }) => content), ["first", "Half", "second"]);
    clean(page);
    await page.context().close();
  });

  test("an Enter that ends a word of an input method sends nothing; a new conversation drops the running answer", async () => {
    const page = await inside(stubbed({ chunks: [frame("Half")], hold: true }));
    await page.locator("#question").fill("你好");
    await page.locator("#question").dispatchEvent("keydown", { key: "Enter", isComposing: true, bubbles: true });
    assert.equal(await page.locator(".turn").count(), 0);
    await page.locator("#question").press("Enter");
    await page.locator(".answer:not(:empty)").waitFor();
    await page.locator("#new").click();
    await settled(page);
    assert.equal(await page.locator(".turn").count(), 0);
    assert.ok(await page.locator("#empty").isVisible());
    clean(page);
    await page.context().close();
  });

  test("a named error event without an error member is an error", async () => {
    const page = await inside(stubbed({ chunks: ['event: error\ndata: {"message":"gone"}\n\n'] }));
    await ask(page, "hello");
    await page.locator(".note.bad").waitFor();
    await page.context().close();
  });

  test("the request carries settings and the conversation, the key only in its header", async () => {
    const page = await inside(stubbed({ chunks: [whole] }));
    await page.locator("#model").selectOption("two");
    await page.locator("#settings > summary").click();
    await page.locator("#system").fill("Be brief.");
    await page.locator("#limit").fill("64");
    await page.locator("#heat").fill("0.2");
    await page.keyboard.press("Escape");
    await ask(page, "first");
    await settled(page);
    await page.locator("#question").pressSequentially("a");
    await page.keyboard.press("Shift+Enter");
    await page.locator("#question").pressSequentially("b");
    await page.keyboard.press("Enter");
    await page.locator(".usage").nth(1).waitFor();
    const { headers, body } = (await page.evaluate(() => window.sent)).at(-1);
    assert.equal(headers.Authorization, "Bearer sk-guan-stub");
    assert.deepEqual(body, {
      model: "two",
      messages: [
        { role: "system", content: "Be brief." },
        { role: "user", content: "first" },
        { role: "assistant", content: "Two words 关" },
        { role: "user", content: "a\nb" },
      ],
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: 64,
      temperature: 0.2,
    });
    await page.locator("#new").click();
    assert.equal(await page.locator(".turn").count(), 0);
    clean(page);
    await page.context().close();
  });
});

describe("refusals in plain words", () => {
  for (const [name, reply, words, action] of [
    ["wrong key", refusal(401, "invalid_api_key"), /does not accept this key/, "Enter another key"],
    ["no network", { fail: true }, /can't be reached/, "Try again"],
    ["rate limit", refusal(429, "rate_limit_exceeded", { "retry-after": "40" }), /Too many requests.*Try again in 40 s/, /Try again \(\d+ s\)/],
    ["rate limit in milliseconds", refusal(429, "rate_limit_exceeded", { "retry-after-ms": "6500", "retry-after": "9" }), /Try again in 7 s/, /Try again/],
    ["budget", refusal(429, "insufficient_quota"), /budget of this key is used up/, null],
    ["context too long", refusal(400, "context_length_exceeded"), /longer than this model can read/, "New conversation"],
    ["model gone", refusal(404, "model_not_found"), /not available/, "Try again"],
    ["busy", refusal(503, "server_is_overloaded"), /busy or not ready/, "Try again"],
    ["a proxy's page", { status: 502, chunks: ["<html>bad gateway"] }, /failed on the server/, "Try again"],
  ]) {
    test(name, async () => {
      const page = await inside(stubbed(reply));
      await ask(page, "hello");
      const note = page.locator(".note.bad");
      await note.waitFor();
      assert.match(await note.innerText(), words);
      const buttons = await note.getByRole("button").allInnerTexts();
      if (action === null) assert.deepEqual(buttons, []);
      else assert.ok(buttons.length === 1 && (action.test?.(buttons[0]) ?? buttons[0] === action), `${buttons}`);
      if (name === "rate limit") {
        assert.ok(await note.getByRole("button").isDisabled());
        await note.locator("summary").click();
        assert.match(await note.locator(".detail").innerText(), /own words[\s\S]*req_123/);
        await shot(page, "rate-limit");
      }
      clean(page);
      await page.context().close();
    });
  }

  test("after the wait the retry works", async () => {
    const page = await inside(stubbed(refusal(429, "rate_limit_exceeded", { "retry-after": "0.4" }), { chunks: [frame("Fine."), frame("", "stop"), "data: [DONE]\n\n"] }));
    await ask(page, "hello");
    await page.locator(".act:not(:disabled)").click();
    await page.locator(".answer:not(:empty)").waitFor();
    await settled(page);
    assert.equal(await page.locator(".answer").innerText(), "Fine.");
    await page.context().close();
  });
});

describe("rendering", () => {
  const evil = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> [x](javascript:window.pwned=1)';
  const text = [
    `Plain **bold ${"`code`"}** 2 * 3 * 4 and snake_case.`, evil, "- one\n- two\n  - deeper\n\n3. three\n4. four",
    "```html\n<b>not bold</b>\n\n  indented\n```", "1. Step:\n\n   ```sh\n   run\n     deeper\n   ```\n2. Next", "| a | b |\n|---|---|\n| 1 | 2 |", "> said", "```\nnever closed",
  ].join("\n\n");
  const chunks = [...text].map((letter) => frame(letter)).concat(frame("", "stop"), "data: [DONE]\n\n");

  test("Markdown becomes nodes, markup stays text, streamed equals whole", async () => {
    const page = await inside(stubbed({ chunks }, { chunks: [chunks.join("")] }));
    await ask(page, "hello");
    await settled(page);
    const answer = page.locator(".answer");
    assert.equal(await answer.locator("strong").innerText(), "bold code");
    assert.equal(await answer.locator("ol").first().getAttribute("start"), "3");
    assert.equal(await answer.locator("ol").nth(1).locator("> li").count(), 2);
    assert.equal(await answer.locator("ul ul li").innerText(), "deeper");
    assert.deepEqual(await answer.locator("pre").allInnerTexts(), ["<b>not bold</b>\n\n  indented", "run\n  deeper", "never closed"]);
    assert.equal(await answer.locator("img, script, a, b").count(), 0);
    assert.ok((await answer.innerText()).includes(evil));
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    await answer.getByRole("button", { name: "Copy code" }).first().click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "<b>not bold</b>\n\n  indented");
    await page.getByRole("button", { name: "Copy", exact: true }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), text);
    await ask(page, "again");
    await settled(page);
    const [grown, whole] = await answer.evaluateAll((nodes) => nodes.map((node) => node.innerHTML.replaceAll(/<button.*?<\/button>/g, "")));
    assert.equal(grown, whole);
    await accessible(page, "rendering");
    clean(page);
    await page.context().close();
  });

  test("a hostile long line does not freeze the page", async () => {
    const lines = ["*a".repeat(20_000), "`".repeat(20_000) + "x", "~".repeat(20_000) + "`", "- ".repeat(20_000), "> ".repeat(20_000), "|-".repeat(20_000) + "x", "**".repeat(20_000) + " "];
    const page = await inside(stubbed({ chunks: [...lines.map((line) => frame(`${line}\n\n`)), frame("", "stop"), "data: [DONE]\n\n"] }));
    await ask(page, "hello");
    await page.locator("#send").waitFor({ timeout: 20_000 });
    clean(page);
    await page.context().close();
  });
});

describe("looks and languages", () => {
  const reply = { chunks: [frame("**关**：ok\n\n```sh\nguan serve\n```\n\nDone."), frame("", "stop"), "data: [DONE]\n\n"] };

  for (const colorScheme of ["light", "dark"]) {
    test(`axe finds nothing serious, ${colorScheme}`, async () => {
      const page = await open({ colorScheme, ...stubbed(reply, refusal(500, null), refusal(429, "rate_limit_exceeded", { "retry-after": "60" })) });
      await accessible(page, `door, ${colorScheme}`);
      if (colorScheme === "dark") await shot(page, "door-dark");
      await page.locator("#enter").click();
      await page.locator("#door-error:not(:empty)").waitFor();
      await accessible(page, `door with error, ${colorScheme}`);
      await enter(page, "sk-guan-stub");
      await page.locator("#question").waitFor();
      await accessible(page, `empty, ${colorScheme}`);
      for (const question of ["one", "two", "three"]) {
        await ask(page, question);
        await settled(page);
      }
      await page.locator(".note.bad").nth(1).waitFor();
      await accessible(page, `answer and errors, ${colorScheme}`);
      await shot(page, `errors-${colorScheme}`);
      await page.locator("#settings > summary").click();
      await accessible(page, `settings, ${colorScheme}`);
      await shot(page, `settings-${colorScheme}`);
      clean(page);
      await page.context().close();
    });
  }

  test("中文: by the browser's language, and by the switch", async () => {
    const page = await open({ ...stubbed(refusal(401, "invalid_api_key")), locale: "zh-CN" });
    assert.equal(await page.locator("html").getAttribute("lang"), "zh-Hans");
    assert.equal(await page.locator("#enter").innerText(), "继续");
    await shot(page, "door-zh");
    await page.locator("#lang").click();
    assert.equal(await page.locator("html").getAttribute("lang"), "en");
    assert.equal(await page.locator("#enter").innerText(), "Continue");
    await enter(page, "sk-guan-stub");
    await ask(page, "你好");
    await page.locator(".note.bad").waitFor();
    await page.locator("#lang").click();
    assert.match(await page.locator(".note.bad").innerText(), /服务器不接受此密钥/);
    assert.equal(await page.locator("#question").getAttribute("placeholder"), "输入消息");
    assert.equal(await page.locator("#send").getAttribute("aria-label"), "发送");
    await shot(page, "error-zh");
    clean(page);
    await page.context().close();
  });

  test("both languages say everything", async () => {
    const source = await (await browser.newContext({ ignoreHTTPSErrors: true })).request.get(new URL("/assets/chat.js", GUAN_URL).href);
    const names = [...(await source.text()).matchAll(/^ {2}(en|zh): \{\n([\s\S]*?)\n {2}\},/gm)].map(([, , body]) => [...body.matchAll(/(\w+): "/g)].map(([, name]) => name));
    assert.equal(names.length, 2);
    assert.deepEqual(names[0], names[1]);
    assert.ok(names[0].length > 50);
  });

  test("a key remembered in this tab survives a reload, and is forgotten on demand", async () => {
    const page = await open(stubbed(reply));
    await page.locator("#keep").check();
    await enter(page, "sk-guan-stub");
    await page.locator("#question").waitFor();
    await page.reload();
    await page.locator("#question").waitFor();
    await page.locator("#settings > summary").click();
    await page.locator("#leave").click();
    await page.locator("#door").waitFor();
    assert.ok(!(await page.evaluate(() => JSON.stringify([{ ...sessionStorage }, { ...localStorage }]))).includes("stub"));
    await page.context().close();
  });

  test("fits a 360 px phone", async () => {
    const phone = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
    const page = await open({ ...stubbed(reply), ...phone, locale: "zh-CN" });
    await shot(page, "phone-door-zh");
    await enter(page, "sk-guan-stub");
    await ask(page, "什么是最小权限原则？");
    await page.locator(".answer:not(:empty)").waitFor();
    await settled(page);
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 360);
    await shot(page, "phone-answer-zh");
    await accessible(page, "phone");
    await page.locator("#settings > summary").click();
    await shot(page, "phone-settings-zh");
    clean(page);
    await page.context().close();
  });
});
