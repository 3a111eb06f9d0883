// An MCP client in a page, for the test of `cors`.
const url = "{MCP}";
const steps = [];
let session;

function headers(more = {}) {
  const all = { "accept": "application/json, text/event-stream", ...more };
  if (session) {
    all["mcp-session-id"] = session;
    all["mcp-protocol-version"] = "2025-11-25";
  }
  return all;
}

const post = (message, signal) => fetch(url, {
  method: "POST",
  headers: headers({ "content-type": "application/json" }),
  body: JSON.stringify({ jsonrpc: "2.0", ...message }),
  signal,
});

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const event = { data: "" };
      for (const line of text.slice(0, end).split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) event[line.slice(0, at)] = line.slice(at + 2);
      }
      yield event;
    }
  }
}

async function outcome(response, each = async () => {}) {
  for await (const event of events(response)) {
    if (!event.data) continue;
    const message = JSON.parse(event.data);
    if (message.result || message.error) return { message, id: event.id };
    await each(message, event);
  }
  throw new Error("a stream without a response");
}

const call = (id, name, args) => ({
  id, method: "tools/call", params: { name, arguments: args, _meta: { progressToken: id } },
});

async function main() {
  const made = await post({ id: 0, method: "initialize", params: {
    protocolVersion: "2025-11-25", capabilities: { elicitation: {} },
    clientInfo: { name: "page", version: "1" },
  } });
  session = made.headers.get("mcp-session-id");
  await outcome(made);
  if (session) steps.push("session");
  await post({ method: "notifications/initialized" });

  const tools = (await outcome(await post({ id: 1, method: "tools/list" }))).message;
  steps.push("tools " + tools.result.tools.map((tool) => tool.name).join(" "));

  const asked = await outcome(await post(call(2, "ask", { message: "?" })), async (question) => {
    steps.push("asked " + question.params.message);
    await post({ id: question.id, result: { action: "accept", content: { answer: "from a page" } } });
  });
  steps.push("answered " + asked.message.result.content[0].text);

  const cut = new AbortController();
  let last;
  await fetch("/go", { method: "POST" });
  try {
    await outcome(await post(call(3, "count", { n: 2 }), cut.signal), async (message, event) => {
      last = event.id;
      steps.push("cut after " + message.params.progress);
      cut.abort();
    });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
  await fetch("/go", { method: "POST" });
  const resume = (id) => fetch(url, { headers: headers({ "last-event-id": id }) });
  let seen;
  const rest = await outcome(await resume(last), async (message) => {
    seen = message.params.progress;
  });
  steps.push("resumed " + seen + " " + rest.message.result.content[0].text);

  const over = await resume(rest.id);
  steps.push(over.status + " after the end");
  const gone = await fetch(url, { method: "DELETE", headers: headers() });
  if (gone.ok) steps.push("deleted");
}

main()
  .catch((error) => steps.push(String(error)))
  .finally(() => fetch("/report", { method: "POST", body: steps.join("\n") }));
