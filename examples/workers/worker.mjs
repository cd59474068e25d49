// A packhorse worker in JavaScript: Node 18 or later, nothing to install. docs/workers-over-http.md says why it does
// what it does; the numbers here are of its rules.
//   PACKHORSE_SERVER=http://127.0.0.1:8080 PACKHORSE_TOKEN=… node worker.mjs ./handlers.mjs
// handlers.mjs:  export default { email: async (payload, { job, signal, progress }) => "sent" }
// A handler that throws is tried again; not if its error has `permanent: true`. `signal` says that it is to stop.
import { webcrypto as crypto } from "node:crypto"; // global from Node 19 on
import { hostname } from "node:os";
import { pathToFileURL } from "node:url";

if (!process.argv[2]) { console.error("usage: node worker.mjs ./handlers.mjs"); process.exit(2); }
const { PACKHORSE_SERVER: server = "http://127.0.0.1:8080", PACKHORSE_TOKEN: key, QUEUES = "default" } = process.env;
const [slots, lease, graceMs] = [Number(process.env.SLOTS ?? 10), Number(process.env.LEASE ?? 30), 25_000];
const handlers = (await import(pathToFileURL(process.argv[2]))).default;
const about = {
  worker: `node-${crypto.randomUUID()}`, // new at every start: what the one before held is not ours
  lease, queues: QUEUES.split(","), types: Object.keys(handlers), concurrency: slots, host: hostname(), pid: process.pid,
};
const runs = new Map(); // "id token" → { job, stop, progress }: a job that was lost may come back under another token
const strangers = new Map(); // "id token" of what the server says we hold and we do not know → since when
let stopping = false, retiring = false, beating, held = now(), slotFree = () => {}, claiming = new AbortController();

// Rule 2: the steady clock may stand still while the machine sleeps and the wall clock may be set back, so whichever
// says that more time has passed is believed.
function now() { return { wall: Date.now(), steady: performance.now() }; }
const since = (then) => Math.max(Date.now() - then.wall, performance.now() - then.steady);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const complain = (error) => console.error(error.cause?.message ? `${error}: ${error.cause.message}` : String(error));
const nameOf = (job) => `${job.id} ${job.token}`;

async function call(method, path, body, hangUp = new AbortController()) {
  const timer = setTimeout(() => hangUp.abort(new Error(`${path}: no answer`)), lease * 1_000);
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  try {
    const options = { method, headers, body: body && JSON.stringify(body), signal: hangUp.signal };
    const answer = await fetch(`${server}/api/v1/${path}`, options);
    if (answer.ok) return await answer.json();
    throw Object.assign(new Error(`${path}: ${answer.status} ${await answer.text()}`), { status: answer.status });
  } finally { clearTimeout(timer); }
}

async function settle({ id, token }, end) { // rules 5 and 6: until the server knows; `stale` is as good
  for (let pause = 100; ; pause = Math.min(pause * 2, 5_000)) {
    try { return await call("POST", "settlements", { settlements: [{ id, token, ...end }] }); } catch (error) {
      complain(error);
      const refused = { kind: "Refused", message: String(error) };
      if ([413, 422].includes(error.status)) end = { outcome: "failed", permanent: true, error: refused };
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }
}

async function run(job) {
  const one = { job, stop: new AbortController() }, { signal } = one.stop;
  const limit = job.timeout_ms && setTimeout(() => one.stop.abort(new Error("still running at its time-out")), job.timeout_ms);
  const stopped = new Promise((_, stop) => signal.addEventListener("abort", () => stop(signal.reason)));
  runs.set(nameOf(job), one);
  const end = await (async () => { // a handler that does not look at `signal` goes on, but nobody waits for it
    const handler = handlers[job.type](job.payload, { job, signal, progress: (part) => { one.progress = part; } });
    return { outcome: "succeeded", result: (await Promise.race([handler, stopped])) ?? null };
  })().catch((error) => {
    const { name: kind = "Error", message = String(error), stack: traceback = "" } = error ?? {};
    return error?.end ?? { outcome: "failed", permanent: error?.permanent === true, error: { kind, message, traceback } };
  });
  clearTimeout(limit);
  if (end.outcome !== "lost") await settle(job, end); // it keeps its slot until then: rule 6
  runs.delete(nameOf(job));
  slotFree();
}

async function beat() { // rules 3 and 4
  const sent = now();
  const progress = [...runs.values()].map(({ job: { id, token }, progress }) => ({ id, token, progress }));
  const pulse = await call("POST", "heartbeats", { ...about, progress });
  held = sent;
  for (const job of pulse.lost) runs.get(nameOf(job))?.stop.abort({ end: { outcome: "lost" } });
  for (const id of pulse.cancel) runs.get(`${id} ${pulse.held[id]}`)?.stop.abort({ end: { outcome: "cancelled" } });
  const unknown = Object.entries(pulse.held).map(([id, token]) => ({ id, token })).filter((job) => !runs.has(nameOf(job)));
  for (const name of strangers.keys()) if (!unknown.some((job) => nameOf(job) === name)) strangers.delete(name);
  for (const job of unknown) { // rule 7: claimed for us in an answer that never came, unless one is still on its way
    if (!strangers.has(nameOf(job))) strangers.set(nameOf(job), now());
    if (stopping || since(strangers.get(nameOf(job))) > lease * 1_000) await settle(job, { outcome: "released" });
  }
}

async function keep() {
  for (;;) {
    await sleep(Math.min(1_000, lease * 250));
    if (retiring) return;
    await (beating = beat().catch((error) => complain(error)));
    if (since(held) > lease * 1_000) for (const { stop } of runs.values()) stop.abort({ end: { outcome: "lost" } });
  }
}

function stop() { // rule 10; a second signal does not wait
  const release = () => { for (const one of runs.values()) one.stop.abort({ end: { outcome: "released" } }); };
  if (stopping) return release();
  stopping = true;
  claiming.abort();
  setTimeout(release, graceMs).unref();
}

process.on("SIGTERM", stop).on("SIGINT", stop);
keep();
while (!stopping) {
  if (runs.size >= slots) { await new Promise((free) => { slotFree = free; }); continue; } // rule 8
  try {
    const sent = now(), body = { ...about, limit: Math.min(100, slots - runs.size), wait: Math.min(20, lease / 2) };
    const { jobs, waited_ms } = await call("POST", "claims", body, (claiming = new AbortController()));
    if (!jobs.length) continue;
    held = { wall: sent.wall + waited_ms, steady: sent.steady + waited_ms };
    if (since(held) > lease * 333) await beat(); // rule 2: a third is gone before they start
    if (!stopping) jobs.forEach(run);
  } catch (error) {
    if (!stopping) { complain(error); await sleep(200 + Math.random() * 800); }
  }
}
while (runs.size) await sleep(20);
retiring = true;
await beating; // one that arrives after we retired would list us again
await beat().catch(() => {}); // releases what was claimed and not started
await call("DELETE", `workers/${about.worker}`).catch((error) => complain(error));
process.exit(0);
