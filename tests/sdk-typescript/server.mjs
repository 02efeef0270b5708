// SPDX-License-Identifier: Apache-2.0
// What the tests share: the server under test, sandboxes that are gone afterwards, deadlines.
//
// PANDASTACK_API and PANDASTACK_API_KEY say which server; the library reads them itself.

import { after } from "node:test";
import { Client, NotFoundError, Sandbox } from "@pandastack/sdk";

for (const name of ["PANDASTACK_API", "PANDASTACK_API_KEY"]) {
  if (!process.env[name]) throw new Error(`set ${name}: the tests need a running server`);
}

export const client = new Client();

// Tests that fail half-way must not leave sandboxes behind for long.
const TTL = 600;

const made = [];
after(() => Promise.all(made.map(kill)));

/** A sandbox that is gone when the file's tests are over. */
export async function create(options = {}) {
  const sandbox = await Sandbox.create({ template: "base", ttlSeconds: TTL, ...options }, client);
  made.push(sandbox);
  return sandbox;
}

let shared;

/** One sandbox for all tests of a file that leave no trace which others could trip over. */
export function sharedSandbox() {
  shared ??= create();
  return shared;
}

export async function kill(sandbox) {
  try {
    await sandbox.kill();
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
  }
}

export async function isGone(id) {
  try {
    await client.sandboxes.get(id);
    return false;
  } catch (error) {
    if (error instanceof NotFoundError) return true;
    throw error;
  }
}

/** The first true value of `check`, asked until a deadline. */
export async function eventually(check, seconds = 15) {
  const deadline = performance.now() + seconds * 1000;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (performance.now() > deadline) throw new Error(`still ${value} after ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A request of our own, for what the library cannot do: binary reads, deletions. */
export async function request(method, path, query = {}) {
  const url = new URL(`${process.env.PANDASTACK_API}/v1${path}`);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  const headers = { authorization: `Bearer ${process.env.PANDASTACK_API_KEY}` };
  const response = await fetch(url, { method, headers });
  return { status: response.status, bytes: new Uint8Array(await response.arrayBuffer()) };
}

/** Text with everything that is known to be mangled on the way. */
export const AWKWARD =
  "é ÅÄ 日本 🐼 next\u0085line line\u2028sep par\u2029sep nb\u00a0sp \ufeffbom \x0b\x0c\x1c";

/** The lines `1` to `n`. */
export const sequence = (n) => Array.from({ length: n }, (_, i) => `${i + 1}\n`).join("");
