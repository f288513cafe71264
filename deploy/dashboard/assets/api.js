// The run's HTTP API: the token, requests with a deadline, and the event stream, read with fetch so that the token
// travels in a header and never in an address.

const ROOT = "api/v1/";
const DEADLINE_MS = 15000;
const TOKEN_KEY = "tempera-token";

export class ApiError extends Error {
  constructor(status, message, answer = {}) {
    super(message);
    this.status = status;
    this.answer = answer;
  }
}

/** The token: from the fragment of the address, which is then cleared, or from this tab's session storage. */
export function rememberedToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    keepToken(found);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(TOKEN_KEY) || "";
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN_KEY, token.trim());
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY) || "";
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  let response;
  try {
    response = await fetch(ROOT + path, { cache: "no-store", signal: AbortSignal.timeout(DEADLINE_MS), ...options, headers });
  } catch (error) {
    throw new ApiError(0, error.name === "TimeoutError" ? "The run did not answer in time." : "The run cannot be reached.");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new ApiError(response.status, answer.error || `The run answered ${response.status}.`, answer);
}

export async function get(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  return (await ask(query ? `${path}?${query}` : path)).json();
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** The address of a thumbnail held in this page's memory; the caller revokes it. */
export async function imageUrl(id, side) {
  return URL.createObjectURL(await (await ask(`samples/${id}/image?side=${side}`)).blob());
}

/**
 * Follow the run's events until the connection ends or fails.
 * @param {(event: string, data: object) => void} onEvent called for each event
 * @param {() => void} onLife called for everything that arrives, beats too
 * @param {AbortSignal} signal ends it
 */
export async function follow(onEvent, onLife, signal) {
  const response = await ask("stream", { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let partial = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onLife();
    const blocks = (partial + value).replaceAll("\r\n", "\n").split("\n\n");
    // The last block may be incomplete until the next read.
    partial = blocks.pop();
    for (const block of blocks) deliver(block, onEvent);
  }
}

function deliver(block, onEvent) {
  const fields = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue;
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).trimStart();
    fields[name] = name === "data" ? fields.data + value : value;
  }
  if (fields.data) onEvent(fields.event, JSON.parse(fields.data));
}
