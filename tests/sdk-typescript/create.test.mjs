// SPDX-License-Identifier: Apache-2.0
// Sandboxes come, are what was asked for, and go.

import assert from "node:assert/strict";
import test from "node:test";
import { BadRequestError, Client, Sandbox, ServerError } from "@pandastack/sdk";
import { client, create, eventually, isGone, kill } from "./server.mjs";

// The default of this library is `ubuntu-24.04`, of its Python sibling `code-interpreter`.
const templates = [undefined, "ubuntu-24.04", "base", "code-interpreter", "code-interpreter-v1"];

for (const template of templates) {
  test(`a sandbox from ${template ?? "the default template"}`, async () => {
    const sandbox = await Sandbox.create(template ? { template } : {});
    try {
      assert.equal(sandbox.status, "running");
      assert.equal((await sandbox.exec("python3 -c 'print(6 * 7)'")).stdout, "42\n");
    } finally {
      await sandbox[Symbol.asyncDispose]();
    }
    assert.ok(await isGone(sandbox.id));
  });
}

test("the fields", async () => {
  const metadata = { owner: "tests", empty: "", unicode: "é 🐼 \u2028", spaces: " a  b " };
  const sandbox = await create({ metadata });
  for (const { info } of [sandbox, await Sandbox.get(sandbox.id), await client.sandboxes.get(sandbox.id)]) {
    assert.equal(info.id, sandbox.id);
    assert.equal(info.template, "base");
    assert.ok(Number.isInteger(info.cpu) && info.cpu >= 1);
    assert.ok(Number.isInteger(info.memory_mb) && info.memory_mb >= 128);
    assert.equal(info.status, "running");
    assert.deepEqual(info.metadata, metadata);
    assert.ok(info.created_at);
  }
});

test("the list", async () => {
  const sandbox = await create();
  const ids = async () => (await Sandbox.list()).map((each) => each.id);
  assert.ok((await ids()).includes(sandbox.id));
  await kill(sandbox);
  assert.ok(!(await ids()).includes(sandbox.id));
});

test("killed twice", async () => {
  const sandbox = await create();
  await sandbox.kill();
  await kill(sandbox);
  assert.ok(await isGone(sandbox.id));
});

test("a size of one's own", async () => {
  // The library does not send a size by itself. A first use may have to be baked: the server
  // refuses until then, and this library does not wait for that.
  const patient = new Client({ timeoutMs: 120_000 });
  const json = { template: "base", cpu: 2, memory_mb: 1024, ttl_seconds: 600 };
  const info = await eventually(async () => {
    try {
      return await patient.request("POST", "/sandboxes", { json });
    } catch (error) {
      if (error instanceof ServerError && error.statusCode === 503) return undefined;
      throw error;
    }
  }, 300);
  const sandbox = Sandbox.fromInfo(info, patient);
  try {
    assert.deepEqual([info.cpu, info.memory_mb], [2, 1024]);
    assert.equal((await sandbox.exec("nproc")).stdout, "2\n");
    const kilobytes = Number((await sandbox.exec("awk '/^MemTotal:/ { print $2 }' /proc/meminfo")).stdout);
    // The kernel keeps a part for itself.
    assert.ok(kilobytes > 0.85 * 1024 * 1024 && kilobytes <= 1024 * 1024, String(kilobytes));
  } finally {
    await kill(sandbox);
  }
});

for (const size of [{ cpu: 0 }, { cpu: -1 }, { memory_mb: 1 }, { cpu: 1_000_000 }]) {
  test(`an impossible size: ${JSON.stringify(size)}`, async () => {
    const json = { template: "base", ...size };
    await assert.rejects(client.request("POST", "/sandboxes", { json }), BadRequestError);
  });
}
