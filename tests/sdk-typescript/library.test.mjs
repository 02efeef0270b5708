// SPDX-License-Identifier: Apache-2.0
// The library under these tests is the published one; its lock file pins every byte of it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

const read = (path) => JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8"));

test("the version is the pinned one", () => {
  const installed = read("node_modules/@pandastack/sdk/package.json");
  assert.equal(installed.version, "0.9.0");
  const locked = read("package-lock.json").packages["node_modules/@pandastack/sdk"];
  assert.equal(locked.version, installed.version);
  assert.match(locked.integrity, /^sha512-/);
});
