// The OpenAI SDK for Node against a running server: drive.py names it (GUAN_URL, GUAN_KEY, NODE_EXTRA_CA_CERTS).

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { before, test } from "node:test";
import OpenAI from "openai";

const { GUAN_URL, GUAN_KEY, GUAN_BIN, GUAN_DATA } = process.env;
if (!GUAN_URL || !GUAN_KEY) throw new Error("set GUAN_URL and GUAN_KEY: run this through tests/sdk/drive.py");

const PATIENCE = { timeout: 120_000 }; // a small model on two busy cores
const ASK = [{ role: "user", content: "Say hello in one short sentence." }];
const sdk = (apiKey, options = {}) => new OpenAI({ baseURL: `${GUAN_URL}/v1`, apiKey, maxRetries: 0, ...PATIENCE, ...options });
const client = sdk(GUAN_KEY);
let model;

function makeKey(role) {
  const shown = execFileSync(GUAN_BIN, ["key", "create", "--role", role, "--name", `node ${role}`, "--json", "--data", GUAN_DATA]);
  return /sk-guan-[0-9A-Za-z]{12}_[0-9A-Za-z]+_[0-9A-Za-z]+/.exec(JSON.stringify(JSON.parse(shown)))[0];
}

before(async () => {
  model = (await client.models.list()).data[0].id;
});

test("a chat answer has text and usage", PATIENCE, async () => {
  const answer = await client.chat.completions.create({ model, messages: ASK, max_tokens: 16, temperature: 0 });
  assert.equal(answer.model, model);
  assert.ok(answer.choices[0].message.content.trim());
  assert.ok(answer.usage.completion_tokens > 0 && answer.usage.completion_tokens <= 16);
  assert.ok(answer._request_id);
});

test("the loop over a stream ends after [DONE], with the text of the whole answer", PATIENCE, async () => {
  const asked = { model, messages: ASK, max_tokens: 16, temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  let text = "";
  let last;
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    assert.equal(chunk.choices.length, 1);
    text += chunk.choices[0].delta.content ?? "";
    last = chunk.choices[0].finish_reason;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(last, whole.choices[0].finish_reason);
});

test("the usage chunk comes last, and only when asked for", PATIENCE, async () => {
  const chunks = [];
  const stream = await client.chat.completions.create({
    model, messages: ASK, max_tokens: 8, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) chunks.push(chunk);
  const usage = chunks.pop();
  assert.deepEqual(usage.choices, []);
  assert.ok(usage.usage.completion_tokens > 0);
  assert.ok(chunks.every((chunk) => chunk.choices.length === 1 && !chunk.usage));
});

test("the SDK's own collector of a stream is content", PATIENCE, async () => {
  const runner = client.chat.completions.stream({ model, messages: ASK, max_tokens: 8 });
  const answer = await runner.finalChatCompletion();
  assert.equal(answer.choices[0].message.role, "assistant");
});

test("completions answer", PATIENCE, async () => {
  const answer = await client.completions.create({ model, prompt: "The capital of France is", max_tokens: 6, temperature: 0 });
  assert.equal(answer.object, "text_completion");
  assert.ok(answer.choices[0].text);
});

test("an aborted stream frees its place at once", PATIENCE, async () => {
  const single = sdk(makeKey("single"));
  const stream = await single.completions.create({
    model, prompt: "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", max_tokens: 8192, temperature: 0, stream: true,
  });
  let seen = 0;
  for await (const _ of stream) {
    if (++seen === 3) stream.controller.abort();
  }
  assert.equal(seen, 3);
  const patient = sdk(single.apiKey, { maxRetries: 8 });
  const answer = await patient.chat.completions.create({ model, messages: ASK, max_tokens: 1 });
  assert.equal(answer.usage.completion_tokens, 1);
});

test("a wrong key is an AuthenticationError", PATIENCE, async () => {
  await assert.rejects(sdk("sk-wrong").models.list(), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.equal(error.status, 401);
    assert.equal(error.code, "invalid_api_key");
    assert.ok(error.requestID);
    return true;
  });
});

test("an unknown model is a NotFoundError, a bad member a BadRequestError that names it", PATIENCE, async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-nothing", messages: ASK }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ model, messages: ASK, max_tokens: -1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "max_tokens");
    return true;
  });
});

test("too many requests are a RateLimitError that says when to come back", PATIENCE, async () => {
  const slow = sdk(makeKey("slow"));
  const call = () => slow.chat.completions.create({ model, messages: ASK, max_tokens: 1 });
  await call();
  await call();
  await assert.rejects(call(), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.equal(error.code, "rate_limit_exceeded");
    assert.ok(Number(error.headers.get("retry-after-ms")) > 0);
    return true;
  });
});
