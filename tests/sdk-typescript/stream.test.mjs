// SPDX-License-Identifier: Apache-2.0
// Commands whose output comes as it is written.

import assert from "node:assert/strict";
import test from "node:test";
import { NotFoundError, SandboxTimeout } from "@pandastack/sdk";
import { AWKWARD, create, sequence, sharedSandbox } from "./server.mjs";

/** Runs a command and gives what it printed, by stream, and its exit code. */
async function run(command, options = {}) {
  const heard = { stdout: "", stderr: "" };
  const sandbox = await sharedSandbox();
  const code = await sandbox.execStream(command, {
    onStdout: (chunk) => (heard.stdout += chunk),
    onStderr: (chunk) => (heard.stderr += chunk),
    ...options,
  });
  return { ...heard, code };
}

test("both streams and the exit code", async () => {
  const heard = await run("echo out; echo err >&2; exit 7");
  assert.deepEqual(heard, { stdout: "out\n", stderr: "err\n", code: 7 });
});

test("death by signal", async () => {
  assert.deepEqual(await run("echo last; kill -9 $$"), { stdout: "last\n", stderr: "", code: 137 });
});

test("output comes before the end", async () => {
  // The command waits for a file that is written only once its first line has arrived.
  const sandbox = await sharedSandbox();
  let stdout = "";
  let written;
  const onStdout = (chunk) => {
    stdout += chunk;
    if (stdout.includes("first")) written ??= sandbox.filesystem.write("/tmp/go", "on");
  };
  const command = "rm -f /tmp/go; echo first; until [ -e /tmp/go ]; do sleep 0.05; done; echo second";
  assert.equal(await sandbox.execStream(command, { onStdout, timeoutSeconds: 25 }), 0);
  await written;
  assert.equal(stdout, "first\nsecond\n");
});

test("unicode", async () => {
  const heard = await run(`printf %s '${AWKWARD}'; printf %s '${AWKWARD}' >&2`);
  assert.deepEqual(heard, { stdout: AWKWARD, stderr: AWKWARD, code: 0 });
});

test("a character in two pieces is one", async () => {
  // Two writes, far enough apart to be two reads.
  const heard = await run(String.raw`printf 'a\303'; sleep 0.3; printf '\251b'`);
  assert.deepEqual(heard, { stdout: "aéb", stderr: "", code: 0 });
});

test("a megabyte exactly", async () => {
  const heard = await run("seq 1 150000");
  assert.equal(heard.code, 0);
  assert.ok(heard.stdout === sequence(150_000));
});

test("silence", async () => {
  assert.deepEqual(await run("true"), { stdout: "", stderr: "", code: 0 });
});

test("a timeout", async () => {
  const begin = performance.now();
  await assert.rejects(run("sleep 3134", { timeoutSeconds: 1 }), SandboxTimeout);
  assert.ok(performance.now() - begin < 20_000);
});

test("a sandbox that is gone", async () => {
  const sandbox = await create();
  await sandbox.kill();
  await assert.rejects(sandbox.execStream("true"), NotFoundError);
});
