// SPDX-License-Identifier: Apache-2.0
// Forks and snapshots, as the published library knows them.

import assert from "node:assert/strict";
import test from "node:test";
import { client, create, kill } from "./server.mjs";

const parent = async () => {
  const made = await create();
  await made.exec("echo disk > /root/file; echo memory > /dev/shm/file");
  return made;
};

const read = async (sandbox) => (await sandbox.exec("cat /root/file /dev/shm/file")).stdout;

test("a fork has everything and goes its own way", async () => {
  const source = await parent();
  const child = await source.fork({ metadata: { who: "child" } });
  try {
    assert.notEqual(child.id, source.id);
    assert.equal(child.info.metadata.who, "child");
    assert.equal(await read(child), "disk\nmemory\n");
    await child.exec("echo other > /root/file; echo other > /dev/shm/file");
    assert.equal(await read(source), "disk\nmemory\n");
  } finally {
    await kill(child);
  }
});

test("a tree is of one moment and in order", async () => {
  const source = await parent();
  const children = await source.forkTree({ count: 3 });
  try {
    const order = children.map((child) => child.info.metadata.fork_index);
    assert.deepEqual(order, ["0", "1", "2"]);
    for (const child of children) assert.equal(await read(child), "disk\nmemory\n");
  } finally {
    for (const child of children) await kill(child);
  }
});

test("a snapshot outlives its sandbox", async () => {
  const source = await parent();
  const snapshot = await source.snapshot();
  await source.exec("echo later > /root/file");
  await kill(source);
  try {
    const copy = await create({ fromSnapshot: snapshot.id });
    assert.equal(await read(copy), "disk\nmemory\n");
  } finally {
    await client.snapshots.delete(snapshot.id);
  }
});
