// SPDX-License-Identifier: Apache-2.0
// How long sandboxes live, and that they stand still when told to.

import assert from "node:assert/strict";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { BadRequestError, Sandbox } from "@pandastack/sdk";
import { client, create, eventually, isGone, kill } from "./server.mjs";

// Counts ten times a second for as long as its machine runs.
const COUNTER =
  "setsid sh -c 'n=0; while :; do n=$((n + 1)); echo $n > /tmp/count; sleep 0.1; done' " +
  "</dev/null >/dev/null 2>&1 &";

test("the time to live is shown and can be changed", async () => {
  const sandbox = await create({ ttlSeconds: 300 });
  const lifecycle = await sandbox.lifecycle();
  assert.equal(lifecycle.ttl_seconds, 300);
  assert.equal(lifecycle.persistent, false);
  assert.ok(lifecycle.idle_seconds >= 0);
  assert.equal((await sandbox.setTtl(500)).ttl_seconds, 500);
  assert.equal((await sandbox.setTtl(0)).ttl_seconds, 0);
  await assert.rejects(sandbox.setTtl(-1), BadRequestError);
});

test("the time to live is kept to", async () => {
  const begin = performance.now();
  const sandbox = await create({ ttlSeconds: 2 });
  assert.equal(await isGone(sandbox.id), false);
  await eventually(() => isGone(sandbox.id));
  assert.ok(performance.now() - begin >= 2000);
});

test("persistent", async () => {
  const sandbox = await Sandbox.create({ template: "base", persistent: true });
  try {
    const { info } = await client.sandboxes.get(sandbox.id);
    assert.equal(info.persistent, true);
    assert.equal((await sandbox.lifecycle()).persistent, true);
    assert.equal((await sandbox.setPersistent(false)).persistent, false);
    assert.equal((await sandbox.setPersistent(true)).persistent, true);
  } finally {
    await kill(sandbox);
  }
});

test("a paused one stands still", async () => {
  const sandbox = await create();
  const count = async () => Number((await sandbox.exec("cat /tmp/count")).stdout.trim() || 0);
  await sandbox.exec(COUNTER);
  await eventually(async () => (await count()) > 3);
  const before = await count();
  await sandbox.pause();
  assert.equal((await Sandbox.get(sandbox.id)).status, "paused");
  await assert.rejects(sandbox.exec("true"), BadRequestError);
  await sleep(4000); // not to wait for anything: this is the time in which nothing may happen
  await sandbox.resume();
  const after = await count();
  assert.equal((await Sandbox.get(sandbox.id)).status, "running");
  // Forty, had it gone on. Some, because it does run before the pause and after the resume.
  assert.ok(before <= after && after < before + 25, `${before} to ${after}`);
  await eventually(async () => (await count()) > after);
});

test("a paused one can be killed", async () => {
  const sandbox = await create();
  await sandbox.pause();
  await sandbox.kill();
  assert.ok(await isGone(sandbox.id));
});

test("a hibernated one sleeps until it is used", async () => {
  const sandbox = await create();
  await sandbox.filesystem.write("/root/file", "kept");
  await sandbox.hibernate();
  await sandbox.hibernate();
  assert.equal((await Sandbox.get(sandbox.id)).status, "hibernated");
  assert.equal((await sandbox.exec("cat /root/file")).stdout, "kept");
  assert.equal((await Sandbox.get(sandbox.id)).status, "running");
  await sandbox.hibernate();
  await sandbox.wake();
  await sandbox.wake();
  assert.equal((await Sandbox.get(sandbox.id)).status, "running");
});
