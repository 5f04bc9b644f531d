// What the page asks of the server: its model, and answers as they come.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const headers = (key) => ({ "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) });

async function checked(answer) {
  if (answer.ok) return answer;
  let message = `${answer.status} ${answer.statusText}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // A proxy's own page: the status says enough.
  }
  throw new Refused(message, answer.status);
}

/** The model that is served, as /v1/models describes it. */
export async function servedModel(key) {
  const answer = await checked(await fetch("v1/models", { headers: headers(key) }));
  return (await answer.json()).data[0];
}

/** Yields the parsed events of one streamed answer. Ends with an error where the stream breaks off. */
export async function* chat(body, key, signal) {
  const answer = await checked(
    await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers(key),
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    }),
  );
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused("", 0);
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const found = JSON.parse(data);
      if (found.error) throw new Refused(found.error.message, found.error.code);
      yield found;
    }
  }
}
