// SPDX-License-Identifier: Apache-2.0
// What cannot be done, and the error that says so.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import test from "node:test";
import { AuthError, BadRequestError, Client, NotFoundError, Sandbox } from "@pandastack/sdk";
import { client, create, sharedSandbox } from "./server.mjs";

for (const template of ["no-such-template", "../base", "", "BASE"]) {
  test(`an unknown template: "${template}"`, async () => {
    await assert.rejects(Sandbox.create({ template }), (error) => {
      assert.ok(error instanceof BadRequestError, String(error));
      assert.equal(error.statusCode, 400);
      assert.match(error.message, /template/);
      return true;
    });
  });
}

test("a negative time to live", async () => {
  await assert.rejects(Sandbox.create({ template: "base", ttlSeconds: -1 }), BadRequestError);
});

for (const id of [randomUUID(), "nonsense"]) {
  test(`an unknown sandbox: ${id === "nonsense" ? id : "a random id"}`, async () => {
    await assert.rejects(Sandbox.get(id), NotFoundError);
    await assert.rejects(client.sandboxes.delete(id), NotFoundError);
    const json = { cmd: "true" };
    await assert.rejects(client.request("POST", `/sandboxes/${id}/exec`, { json }), NotFoundError);
  });
}

test("a sandbox that is gone", async () => {
  const sandbox = await create();
  await sandbox.kill();
  await assert.rejects(sandbox.exec("true"), NotFoundError);
  await assert.rejects(sandbox.filesystem.read("/etc/hostname"), NotFoundError);
  await assert.rejects(sandbox.pause(), NotFoundError);
  await assert.rejects(sandbox.lifecycle(), NotFoundError);
});

test("a wrong key, and none", async () => {
  const sandbox = await sharedSandbox();
  for (const apiKey of ["pds_wrong", `pds_${"0".repeat(40)}`, ""]) {
    const stranger = new Client({ apiKey });
    await assert.rejects(stranger.sandboxes.list(), AuthError);
    await assert.rejects(Sandbox.create({}, stranger), AuthError);
    await assert.rejects(Sandbox.get(sandbox.id, stranger), AuthError);
    await assert.rejects(Sandbox.fromInfo(sandbox.info, stranger).exec("true"), AuthError);
    await assert.rejects(Sandbox.fromInfo(sandbox.info, stranger).execStream("true"), AuthError);
  }
  assert.equal((await sandbox.exec("echo untouched")).stdout, "untouched\n");
});

test("a request without a command", async () => {
  const { id } = await sharedSandbox();
  for (const json of [{}, { cmd: "" }, { cmd: "true", timeout_seconds: -1 }]) {
    await assert.rejects(client.request("POST", `/sandboxes/${id}/exec`, { json }), BadRequestError);
  }
});
