# SPDX-License-Identifier: Apache-2.0
"""What the sync and the async client share: no I/O happens in here.

* `config`: where the server's address and the key come from.
* `wire`: requests, replies, and *flows*: generators that say what to send and when to wait.
* `answers`: from a reply to a value or an exception.
* `capacity`, `warmup`: the two retry policies.
* `sse`, `streams`: from bytes to events to what callers see.
* `sandboxes`, `commands`, `files`, `cells`, `ports`, `templates`, `accounts`: the API's calls.
"""
