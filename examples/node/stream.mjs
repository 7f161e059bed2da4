// Streams an answer of a node, and hangs up after some tokens if it is told to:
//
//   npm ci --prefix examples/node
//   node examples/node/stream.mjs 127.0.0.1:50051 "Who are you?" pirate
//   node examples/node/stream.mjs 127.0.0.1:50051 "Tell me a story." pirate 5
//
// Text goes to stdout, what the node says of it to stderr, as one JSON object.

import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos/", import.meta.url));
const ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo";

const [address, prompt, adapter = "", hangUpAfter = "0"] = process.argv.slice(2);
if (!address || !prompt) {
  process.stderr.write("usage: node stream.mjs ADDRESS PROMPT [ADAPTER] [TOKENS]\n");
  process.exit(2);
}

const files = readdirSync(`${PROTOS}lorapool/v1`).map((name) => `lorapool/v1/${name}`);
const definition = loader.loadSync(files, {
  includeDirs: [PROTOS],
  longs: Number,
  enums: String,
  oneofs: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).lorapool.v1;
const client = new InferenceService(address, grpc.credentials.createInsecure());

const metadata = new grpc.Metadata();
if (adapter) metadata.set("x-adapter-id", adapter.split("@")[0]);
const call = client.StreamGenerate(
  {
    request: {
      adapter,
      chat: { messages: [{ role: "CHAT_ROLE_USER", content: prompt }] },
      stopping: { maxNewTokens: 256 },
    },
  },
  metadata,
  { deadline: Date.now() + 120_000 },
);

const seen = { served: null, tokens: 0, finishReason: null, cancelled: false };
call.on("data", (message) => {
  if (message.event === "started") seen.served = message.started.served;
  if (message.event === "completed") seen.finishReason = message.completed.finishReason;
  if (message.event !== "delta" || seen.cancelled) return;
  process.stdout.write(message.delta.text);
  seen.tokens += message.delta.tokenIds.length;
  if (Number(hangUpAfter) && seen.tokens >= Number(hangUpAfter)) {
    seen.cancelled = true;
    call.cancel();
  }
});
call.on("error", (error) => {
  // What the node refuses it refuses with google.rpc details; the reason is in the first one.
  const details = error.metadata.get("grpc-status-details-bin")[0];
  const refused = details !== undefined && details.includes(ERROR_INFO);
  end(seen.cancelled ? 0 : 1, { code: error.code, details: error.details, refused });
});
call.on("end", () => end(0, { code: 0 }));

let ended = false;
function end(status, outcome) {
  if (ended) return;
  ended = true;
  process.stderr.write(`${JSON.stringify({ ...seen, ...outcome })}\n`);
  client.close();
  process.exitCode = status;
}
