# SPDX-License-Identifier: Apache-2.0
"""Claude Managed Agents in sandboxes of one's own.

The agent's loop runs at Anthropic; with a ``self_hosted`` environment, its tools run wherever a
worker takes the session. This worker takes sessions from the environment's queue and gives each a
sandbox:

    from pandastack.cma import CmaConfig, Worker

    Worker(CmaConfig.from_env()).run()

or ``python -m pandastack cma``. For each item of work it finds the session's sandbox or makes
one, starts Anthropic's runner in it, waits for the runner's end, copies the session's outputs to
this machine, and hibernates the sandbox (or leaves it, or deletes it) until the next turn.
"""

from __future__ import annotations

from .config import CmaConfig
from .queue import ANTHROPIC_BETA, ANTHROPIC_VERSION
from .worker import Worker

__all__ = ["ANTHROPIC_BETA", "ANTHROPIC_VERSION", "CmaConfig", "Worker"]
