// stream.cjs BASE_URL: asks for a completion with the npm package `openai`, and prints what was streamed as JSON.

const { OpenAI } = require("openai");

async function main(baseURL) {
  const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
  const stream = await client.chat.completions.create({
    model: "echo",
    messages: [{ role: "user", content: "hello" }],
    stream: true,
    stream_options: { include_usage: true },
  });
  const found = { deltas: [], finish_reasons: [], usage: null, error: null };
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      if (choice.delta.content) found.deltas.push(choice.delta.content);
      if (choice.finish_reason) found.finish_reasons.push(choice.finish_reason);
    }
    found.usage = chunk.usage ?? found.usage;
  }
  await client.models.retrieve("none").catch((error) => {
    found.error = error.constructor.name;
  });
  console.log(JSON.stringify(found));
}

main(process.argv[2]);
