// SPDX-License-Identifier: Apache-2.0
// What can be asked: templates, logs, ports, who one is.

import assert from "node:assert/strict";
import test from "node:test";
import { NotFoundError } from "@pandastack/sdk";
import { client, eventually, sharedSandbox } from "./server.mjs";

test("templates", async () => {
  const templates = await client.templates.list();
  assert.ok(Array.isArray(templates));
  const names = templates.map((template) => template.name);
  assert.ok(names.includes("base") && names.includes("code-interpreter"), names.join());
  for (const template of templates) {
    assert.ok(template.cpu >= 1 && template.memory_mb >= 128);
    assert.equal(template.is_global, true);
  }
});

test("one template, by name and alias", async () => {
  for (const name of ["base", "ubuntu-24.04", "code-interpreter", "code-interpreter-v1"]) {
    const template = await client.templates.get(name);
    assert.ok(["base", "code-interpreter"].includes(template.name));
  }
  await assert.rejects(client.templates.get("no-such-template"), NotFoundError);
});

async function lines(options) {
  const all = [];
  for await (const line of (await sharedSandbox()).logs(options)) all.push(line);
  return all;
}

test("logs are plain lines", async () => {
  const line = "a line for the log é 🐼";
  await (await sharedSandbox()).exec(`echo '${line}'; echo one on the side >&2`);
  await eventually(async () => (await lines()).includes(line));
  assert.ok((await lines({ stream: "stdout" })).includes(line));
  assert.ok(!(await lines({ stream: "stdout" })).includes("one on the side"));
  assert.ok((await lines({ stream: "stderr" })).includes("one on the side"));
});

test("logs can be followed", async () => {
  const sandbox = await sharedSandbox();
  await sandbox.exec("echo before");
  let found = false;
  for await (const line of sandbox.logs({ follow: true })) {
    assert.ok(!line.startsWith("{"), "an event that is no line");
    found = line === "before";
    if (found) break;
  }
  assert.ok(found);
});

test("ports", async () => {
  const sandbox = await sharedSandbox();
  await sandbox.exec("setsid python3 -m http.server 8123 </dev/null >/dev/null 2>&1 &");
  const url = await eventually(async () => (await sandbox.previewUrls())[8123]);
  assert.ok(url.includes(sandbox.id));
});

test("who am I", async () => {
  const me = await client.me();
  assert.equal(typeof me, "object");
  assert.ok(Object.keys(me).length > 0);
});
