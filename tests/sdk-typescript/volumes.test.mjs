// SPDX-License-Identifier: Apache-2.0
// Volumes, as the published library knows them.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import test from "node:test";
import { NotFoundError } from "@pandastack/sdk";
import { client, create, kill } from "./server.mjs";

test("a volume outlives its sandboxes", async (t) => {
  const name = `test-${randomUUID().slice(0, 8)}`;
  let made;
  try {
    made = await client.volumes.create({ name, size_mb: 32 });
  } catch (error) {
    // The kvm engine has none yet.
    if (error.statusCode === 501) return t.skip(error.message);
    throw error;
  }
  assert.deepEqual([made.name, made.size_mb], [name, 32]);
  assert.ok((await client.volumes.list()).some((volume) => volume.name === name));

  const writer = await create({ volumes: [{ name }] });
  await writer.exec(`echo kept > /volumes/${name}/file`);
  await assert.rejects(client.volumes.delete(name), (error) => error.statusCode === 409);
  await kill(writer);

  const reader = await create({ volumes: [{ name, readOnly: true }] });
  assert.equal((await reader.exec(`cat /volumes/${name}/file`)).stdout, "kept\n");
  assert.notEqual((await reader.exec(`echo x > /volumes/${name}/file`)).exitCode, 0);
  await kill(reader);
  await client.volumes.delete(name);
  await assert.rejects(client.volumes.get(name), NotFoundError);
});
