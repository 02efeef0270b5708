// SPDX-License-Identifier: Apache-2.0
// Files: bytes in, the same bytes out. The library reads files as text, so binary content is
// read back with a request of our own.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { NotFoundError } from "@pandastack/sdk";
import { request, sharedSandbox } from "./server.mjs";

const EVERY_BYTE = Uint8Array.from({ length: 256 }, (_, n) => n);
const AWKWARD = "/root/with space/ünï 🐼/50% a+b&c=d?#.bin";

const fs = async () => (await sharedSandbox()).filesystem;
const route = async () => `/sandboxes/${(await sharedSandbox()).id}/fs`;
const readBytes = async (path) => (await request("GET", await route(), { path })).bytes;
const remove = async (path) => (await request("DELETE", await route(), { path })).status;
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

const contents = {
  "an empty file": new Uint8Array(),
  "every byte": EVERY_BYTE,
  "five megabytes": new Uint8Array(randomBytes(5_000_000)),
};
for (const [name, content] of Object.entries(contents)) {
  test(`round trip: ${name}`, async () => {
    const answer = await (await fs()).write("/tmp/round", content);
    assert.deepEqual([answer.path, answer.bytes], ["/tmp/round", content.length]);
    assert.equal(sha256(await readBytes("/tmp/round")), sha256(content));
    const seen = await (await sharedSandbox()).exec("sha256sum < /tmp/round");
    assert.equal(seen.stdout.split(" ")[0], sha256(content));
  });
}

test("text is UTF-8", async () => {
  const files = await fs();
  await files.write("/tmp/text", "é 🐼\r\n\u2028");
  assert.equal(await files.read("/tmp/text"), "é 🐼\r\n\u2028");
  await files.write("/tmp/text", "y");
  assert.equal(await files.read("/tmp/text"), "y");
});

test("any path and its directories", async () => {
  const files = await fs();
  await files.write(AWKWARD, EVERY_BYTE);
  assert.deepEqual(await readBytes(AWKWARD), EVERY_BYTE);
  const entries = await files.list("/root/with space/ünï 🐼");
  assert.deepEqual(entries.map((entry) => entry.path), [AWKWARD]);
  assert.equal((await files.stat(AWKWARD)).size, 256);
});

test("upload and download", async () => {
  const directory = await mkdtemp(join(tmpdir(), "panda-"));
  try {
    const files = await fs();
    await writeFile(join(directory, "up"), EVERY_BYTE);
    await files.upload(join(directory, "up"), "/tmp/up");
    assert.deepEqual(await readBytes("/tmp/up"), EVERY_BYTE);
    await files.write("/tmp/text", "é\n");
    await files.download("/tmp/text", join(directory, "below", "down"));
    assert.equal(await readFile(join(directory, "below", "down"), "utf8"), "é\n");
  } finally {
    await rm(directory, { recursive: true });
  }
});

test("listing and stat", async () => {
  const files = await fs();
  await (await sharedSandbox()).exec("mkdir -p /tmp/list/below /tmp/list/empty");
  await files.write("/tmp/list/file", "12345");
  const entries = Object.fromEntries((await files.list("/tmp/list")).map((e) => [e.name, e]));
  assert.deepEqual(Object.keys(entries).sort(), ["below", "empty", "file"]);
  assert.ok(entries.below.is_dir);
  assert.deepEqual(await files.list("/tmp/list/empty"), []);
  for (const info of [entries.file, await files.stat("/tmp/list/file")]) {
    assert.deepEqual([info.name, info.path, info.is_dir, info.size], ["file", "/tmp/list/file", false, 5]);
    assert.ok(Math.abs(info.mtime - Date.now() / 1000) < 60);
    assert.ok(info.mode);
  }
  const walked = [];
  for await (const { dir, dirs, files: plain } of files.walk("/tmp/list")) {
    walked.push([dir, dirs.length, plain.length]);
  }
  assert.deepEqual(walked.sort(), [["/tmp/list", 2, 1], ["/tmp/list/below", 0, 0], ["/tmp/list/empty", 0, 0]]);
});

test("what is missing", async () => {
  const files = await fs();
  for (const path of ["/tmp/no/such/file", "/nowhere"]) {
    await assert.rejects(files.read(path), NotFoundError);
    await assert.rejects(files.stat(path), NotFoundError);
    await assert.rejects(files.list(path), NotFoundError);
    assert.equal(await files.exists(path), false);
    assert.equal(await remove(path), 404);
  }
  assert.equal(await files.exists("/etc"), true);
});

test("deletion", async () => {
  const files = await fs();
  await files.write("/tmp/gone/below/file", "x");
  assert.equal(await remove("/tmp/gone/below/file"), 204);
  assert.equal(await files.exists("/tmp/gone/below/file"), false);
  await files.write("/tmp/gone/below/file", "x");
  assert.equal(await remove("/tmp/gone"), 204);
  assert.equal(await files.exists("/tmp/gone"), false);
});
