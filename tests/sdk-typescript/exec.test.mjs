// SPDX-License-Identifier: Apache-2.0
// Commands that are run to their end.

import assert from "node:assert/strict";
import test from "node:test";
import { CommandError, SandboxTimeout } from "@pandastack/sdk";
import { AWKWARD, eventually, sequence, sharedSandbox } from "./server.mjs";

const exec = async (...args) => (await sharedSandbox()).exec(...args);

test("both streams and the exit code", async () => {
  const result = await exec("echo out; echo err >&2; exit 3");
  assert.equal(result.stdout, "out\n");
  assert.equal(result.stderr, "err\n");
  assert.equal(result.exit_code, 3);
  assert.equal(result.exitCode, 3);
  assert.ok(result.duration_ms >= 0);
});

test("exit codes", async () => {
  for (const code of [0, 1, 126, 127, 255]) {
    assert.equal((await exec(`exit ${code}`)).exitCode, code);
  }
});

test("death by signal", async () => {
  for (const signal of [1, 6, 9, 11, 15]) {
    assert.equal((await exec(`kill -${signal} $$`)).exitCode, 128 + signal);
  }
});

test("check", async () => {
  assert.equal((await exec("true", { check: true })).exitCode, 0);
  await assert.rejects(exec("echo why >&2; exit 9", { check: true }), (error) => {
    assert.ok(error instanceof CommandError);
    assert.deepEqual([error.exitCode, error.stderr], [9, "why\n"]);
    return true;
  });
});

test("unicode both ways", async () => {
  const result = await exec(`printf %s '${AWKWARD}'; printf %s '${AWKWARD}' >&2`);
  assert.equal(result.stdout, AWKWARD);
  assert.equal(result.stderr, AWKWARD);
});

test("a megabyte exactly", async () => {
  const result = await exec("seq 1 150000; seq 1 1000 >&2");
  assert.ok(result.stdout === sequence(150_000));
  assert.ok(result.stderr === sequence(1_000));
});

test("standard input is empty", async () => {
  assert.equal((await exec("cat; echo end", { timeoutSeconds: 10 })).stdout, "end\n");
});

test("code", async () => {
  const sandbox = await sharedSandbox();
  assert.equal((await sandbox.runCode("print(6 * 7)", "python")).stdout, "42\n");
  assert.equal((await sandbox.runCode("echo $((6 * 7))")).stdout, "42\n");
  assert.equal((await sandbox.commands.run("echo run")).stdout, "run\n");
});

test("a timeout ends everything that was started", async () => {
  const begin = performance.now();
  await assert.rejects(exec("sleep 3133 & sleep 3133", { timeoutSeconds: 1 }), SandboxTimeout);
  assert.ok(performance.now() - begin < 20_000);
  await eventually(async () => (await exec("pgrep -f '[s]leep 3133'")).exitCode === 1);
  assert.equal((await exec("echo alive")).stdout, "alive\n");
});

test("what runs in the background does not hold the answer", async () => {
  const begin = performance.now();
  const result = await exec("sleep 25 </dev/null >/dev/null 2>&1 & echo started");
  assert.equal(result.stdout, "started\n");
  assert.ok(performance.now() - begin < 15_000);
});

test("sixteen at a time", async () => {
  const begin = performance.now();
  const numbers = Array.from({ length: 16 }, (_, n) => n);
  const results = await Promise.all(numbers.map((n) => exec(`sleep 2; echo ${n}; exit ${n}`)));
  assert.ok(performance.now() - begin < 20_000, "they ran one after the other");
  assert.deepEqual(results.map((r) => r.stdout), numbers.map((n) => `${n}\n`));
  assert.deepEqual(results.map((r) => r.exitCode), numbers);
});
