// Asks a server as a program does that uses OpenAI's client for JavaScript, and prints what it got as one JSON object.
//
//     node client.mjs http://127.0.0.1:8000/v1 MODEL picture.png

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [baseURL, model, file] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const picture = { type: "image_url", image_url: { url: `data:image/png;base64,${readFileSync(file, "base64")}` } };
const hello = [{ role: "user", content: "Hello" }];
const looking = [{ role: "user", content: [picture, { type: "text", text: "Describe the image." }] }];
const schema = {
  type: "object",
  properties: { colour: { enum: ["red", "blue"] }, count: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["colour", "count"],
  additionalProperties: false,
};
const paint = { type: "function", function: { name: "paint", description: "Paints.", parameters: schema } };
const said = {};

async function refused(request) {
  try {
    await request;
    return { status: 200 };
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

const whole = await client.chat.completions.create({ model, messages: hello, temperature: 0 });
said.text = { content: whole.choices[0].message.content, end: whole.choices[0].finish_reason, usage: whole.usage };

const chunks = await client.chat.completions.create({
  model, messages: hello, temperature: 0, stream: true, stream_options: { include_usage: true },
});
said.stream = { content: "", end: null, usage: null };
for await (const chunk of chunks) {
  said.stream.content += chunk.choices[0]?.delta.content ?? "";
  said.stream.end ??= chunk.choices[0]?.finish_reason ?? null;
  said.stream.usage = chunk.usage ?? said.stream.usage;
}

const seen = await client.chat.completions.create({ model, messages: looking, temperature: 0 });
said.image = { content: seen.choices[0].message.content, media: seen.foveal.media, boxes: seen.choices[0].message.boxes };

const form = { type: "json_schema", json_schema: { name: "thing", schema, strict: true } };
const made = await client.chat.completions.create({
  model, messages: looking, temperature: 1.5, seed: 3, response_format: form,
});
said.schema = JSON.parse(made.choices[0].message.content);

const asked = { model, messages: [{ role: "user", content: "Paint it." }], tools: [paint], temperature: 1.5, seed: 5 };
const choice = { type: "function", function: { name: "paint" } };
const called = await client.chat.completions.create({ ...asked, tool_choice: choice });
const { message, finish_reason: end } = called.choices[0];
const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "done" };
const after = await client.chat.completions.create({
  ...asked, messages: [...asked.messages, message, result], max_tokens: 4,
});
said.tools = {
  end, name: message.tool_calls[0].function.name, arguments: JSON.parse(message.tool_calls[0].function.arguments),
  after: after.choices[0].finish_reason,
};

const runner = client.chat.completions.stream({ ...asked, tool_choice: choice });
const final = await runner.finalChatCompletion();
said.streamed_tools = {
  end: final.choices[0].finish_reason, name: final.choices[0].message.tool_calls[0].function.name,
  arguments: JSON.parse(final.choices[0].message.tool_calls[0].function.arguments),
};

const left = await client.chat.completions.create({
  model, messages: hello, stream: true, max_tokens: 1500, ignore_eos: true,
});
for await (const _ of left) break; // a client that leaves in the middle
said.models = (await client.models.list()).data.map((one) => one.id);
said.errors = {
  model: await refused(client.chat.completions.create({ model: "gpt-9", messages: hello })),
  field: await refused(client.chat.completions.create({ model, messages: hello, max_pixel: 5 })),
  long: await refused(client.chat.completions.create({ model, messages: hello, max_tokens: 10 ** 6, stream: true })),
  embeddings: await refused(client.embeddings.create({ model, input: "hello" })),
};
console.log(JSON.stringify(said));
