# SPDX-License-Identifier: Apache-2.0
"""``python -m pandastack``: template builds and the worker of `pandastack.cma`.

It is not installed as a command: ``pandastack`` is the server's own program, which also manages
sandboxes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Callable, Optional, Sequence

from . import templates
from ._version import __version__
from .cma import CmaConfig, Worker
from .exceptions import PandastackError
from .records import TemplateBuild

_CMA_OPTIONS = (
    ("--environment-id", "environment_id", str, "or ANTHROPIC_ENVIRONMENT_ID"),
    ("--environment-key", "environment_key", str, "or ANTHROPIC_ENVIRONMENT_KEY"),
    ("--token", "pandastack_token", str, "PandaStack API key, or PANDASTACK_API_KEY"),
    ("--api", "pandastack_api", str, "address of the PandaStack server, or PANDASTACK_API"),
    ("--template", "template", str, "template of the sandboxes (claude-agent)"),
    ("--outputs-dir", "outputs_dir", Path, "where session outputs go (outputs)"),
    ("--worker-id", "worker_id", str, "name of this worker (pandastack-HOSTNAME)"),
    ("--ttl-seconds", "sandbox_ttl_seconds", int, "time to live of the sandboxes (3600)"),
    ("--max-session-seconds", "max_session_seconds", int, "longest run of a session (3600)"),
)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 130
    except (PandastackError, OSError, ValueError) as error:
        return _fail(str(error))
    except subprocess.CalledProcessError as error:
        return _fail(f"docker failed with exit code {error.returncode}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pandastack", description=main.__doc__)
    parser.add_argument("--version", action="version", version=f"pandastack {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    cma = commands.add_parser("cma", help="run Claude Managed Agents sessions in sandboxes")
    cma.add_argument("--agent-id", help="accepted and not needed: work belongs to an environment")
    cma.add_argument("--on-idle", choices=("hibernate", "running", "delete"))
    for flag, field, kind, text in _CMA_OPTIONS:
        cma.add_argument(flag, dest=field, type=kind, help=text)
    cma.set_defaults(run=_cma)

    template = commands.add_parser("template", help="build templates")
    actions = template.add_subparsers(metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build from a Dockerfile, on the server")
    build.set_defaults(run=_build)
    push = actions.add_parser("push", help="build with the local Docker, push, register")
    push.add_argument("--platform", default="linux/amd64")
    push.set_defaults(run=_push)
    for action in (build, push):
        action.add_argument("--name", required=True)
        action.add_argument("-f", "--dockerfile", default="Dockerfile")
        action.add_argument("--context", help="directory of the files that it copies")
        action.add_argument("--size-mb", type=int, default=1024, help="size of its disk (1024)")
        action.add_argument("--cpu", type=int)
        action.add_argument("--memory-mb", type=int)
        action.add_argument("--no-wait", dest="wait", action="store_false")
    logs = actions.add_parser("build-logs", help="print the log of a build")
    logs.add_argument("build_id")
    logs.add_argument("--follow", action="store_true")
    logs.set_defaults(run=_logs)
    return parser


def _cma(arguments: argparse.Namespace) -> int:
    fields = [field for _, field, _, _ in _CMA_OPTIONS] + ["on_idle"]
    config = CmaConfig.from_env(**{field: getattr(arguments, field) for field in fields})
    Worker(config).run()
    return 0


def _build(arguments: argparse.Namespace) -> int:
    if not Path(arguments.dockerfile).is_file():
        raise FileNotFoundError(f"no such file: {arguments.dockerfile}")
    build = templates.build_from_dockerfile(
        arguments.name,
        arguments.dockerfile,
        context_dir=arguments.context,
        size_mb=arguments.size_mb,
        cpu=arguments.cpu,
        memory_mb=arguments.memory_mb,
    )
    if arguments.wait:
        for line in templates.build_logs(build.id):
            _note(line)
        build = templates.wait_for_build(build.id)
    return _built(build)


def _push(arguments: argparse.Namespace) -> int:
    build = templates.push(
        arguments.name,
        arguments.dockerfile,
        context=arguments.context,
        platform=arguments.platform,
        size_mb=arguments.size_mb,
        cpu=arguments.cpu,
        memory_mb=arguments.memory_mb,
        on_log=_note,
        wait=arguments.wait,
    )
    return _built(build)


def _logs(arguments: argparse.Namespace) -> int:
    for line in templates.build_logs(arguments.build_id, follow=arguments.follow):
        print(line)
    return 0


def _built(build: TemplateBuild) -> int:
    _note(f"template {build.name}: {build.status}")
    print(build.id)
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _fail(text: str) -> int:
    _note(f"error: {text}")
    return 1
