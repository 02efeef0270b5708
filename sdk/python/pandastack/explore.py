# SPDX-License-Identifier: Apache-2.0
"""Try several things at once and keep the best.

Each candidate runs in its own fork of a sandbox, so all start from the same files, memory and
processes and none disturbs another. The outcomes are scored, the best branch is promoted to a
sandbox of its own, the others are deleted:

    result = sandbox.explore(
        ["python solve.py --greedy", "python solve.py --exact"],
        score_fn=lambda sb, outcome: float(sb.filesystem.read_text("/tmp/score")),
    )
    print(result.table())
    result.winner.exec("...")

The forks carry ``explore_ttl`` in their metadata, so that the server can end them when this
process dies before it has chosen.
"""

from __future__ import annotations

import logging
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Union

from .exceptions import ExploreError, PandastackError, SandboxTimeout

if TYPE_CHECKING:
    from .sandbox import Sandbox

__all__ = ["BranchOutcome", "Candidate", "ExploreError", "ExploreResult", "explore"]

logger = logging.getLogger(__name__)

#: The most forks that one request may ask for.
MAX_BRANCHES = 16

_TAIL_BYTES = 4096
_MAX_FILES = 200
_DEFAULT_CONCURRENCY = 4
# Files newer than this one were changed by the branch.
_MARKER = "/tmp/.pandastack-explore-marker"
_WATCHED = "/app /work /root /home"
_CAPTURE_SECONDS = 10


@dataclass
class Candidate:
    """One thing to try: a shell command, or a function that is given the fork."""

    label: str
    cmd: Optional[str] = None
    fn: Optional[Callable[[Sandbox], Any]] = None
    timeout_s: float = 60.0
    env: Optional[Dict[str, str]] = None
    #: A score known beforehand, instead of ``score_fn``.
    score: Optional[float] = None

    @staticmethod
    def shell(label: str, cmd: str, **kw: Any) -> Candidate:
        """A candidate that is a shell command."""
        return Candidate(label, cmd=cmd, **kw)

    @staticmethod
    def call(label: str, fn: Callable[[Sandbox], Any], **kw: Any) -> Candidate:
        """A candidate that is a function."""
        return Candidate(label, fn=fn, **kw)


@dataclass
class BranchOutcome:
    """How a candidate did. ``value`` is what a function returned."""

    label: str
    sandbox_id: str
    ok: bool
    score: float
    exit_code: Optional[int]
    stdout_tail: str
    stderr_tail: str
    files_changed: List[str]
    duration_ms: int
    value: Any = None
    error: Optional[str] = None
    timed_out: bool = False
    _sandbox: Optional[Sandbox] = field(repr=False, default=None)


@dataclass
class ExploreResult:
    """A finished experiment. ``winner`` is ``None`` when ``promote_winner`` was off."""

    winner: Optional[Sandbox]
    winner_outcome: Optional[BranchOutcome]
    #: Best first.
    outcomes: List[BranchOutcome]
    tree_id: str
    reaped: List[str]
    reap_failures: Dict[str, str]
    errors: List[str]

    def best(self, n: int = 1) -> List[BranchOutcome]:
        """The ``n`` best outcomes."""
        return self.outcomes[:n]

    def table(self) -> str:
        """The outcomes as text, the winner marked with a star."""
        rows = [f"  {'label':<20} {'score':>8} {'ok':>3} {'exit':>5} {'ms':>7} {'files':>5}"]
        for o in self.outcomes:
            mark = "*" if o is self.winner_outcome else " "
            code = "-" if o.exit_code is None else o.exit_code
            rows.append(
                f"{mark} {o.label[:20]:<20} {o.score:>8.2f} {'yes' if o.ok else 'no':>3} "
                f"{code:>5} {o.duration_ms:>7} {len(o.files_changed):>5}"
            )
        return "\n".join(rows)


Select = Union[str, Callable[[List[BranchOutcome]], BranchOutcome]]


def explore(
    sandbox: Sandbox,
    candidates: Sequence[Union[Candidate, str]],
    *,
    score_fn: Optional[Callable[[Sandbox, BranchOutcome], float]] = None,
    select: Select = "max",
    require_success: bool = True,
    max_concurrency: Optional[int] = None,
    cleanup_losers: bool = True,
    promote_winner: bool = True,
    capture_files: Union[bool, str] = True,
    ttl_seconds: int = 600,
    on_outcome: Optional[Callable[[BranchOutcome], None]] = None,
) -> ExploreResult:
    """Runs each candidate in a fork of ``sandbox``; see the module for the idea.

    * ``score_fn(fork, outcome)``: without it, a branch that succeeded scores 1, else 0.
    * ``select``: ``max``, ``min``, or a function from the eligible outcomes to the winner.
    * ``require_success``: a branch that failed cannot win.
    * ``max_concurrency``: how many branches run at a time (4); all forks exist from the start.
    * ``cleanup_losers``, ``promote_winner``: what becomes of the forks.
    * ``capture_files``: list the files that a branch changed; a string names where to look.
    * ``ttl_seconds``: when the server may end forks that nobody has chosen from.
    * ``on_outcome``: called as each branch ends.

    Raises `ExploreError` when there are no candidates or more than 16, or when none can win; no
    fork is left then.
    """
    tries = [Candidate(c, cmd=c) if isinstance(c, str) else c for c in candidates]
    if not 0 < len(tries) <= MAX_BRANCHES:
        raise ExploreError(f"explore takes 1 to {MAX_BRANCHES} candidates, not {len(tries)}")
    metadata = {"explore": "1", "explore_ttl": str(int(ttl_seconds))}
    forks = sandbox.fork_tree(len(tries), metadata=metadata)
    try:
        result = _choose(
            forks,
            _run_all(forks, tries, max_concurrency, capture_files, score_fn, on_outcome),
            select,
            require_success,
        )
    except BaseException:
        _kill(forks)
        raise
    if len(forks) < len(tries):
        result.errors.append(f"{len(tries)} branches asked for, the host had room for {len(forks)}")
    _settle(result, forks, cleanup_losers, promote_winner)
    return result


def _run_all(
    forks: Sequence[Sandbox],
    tries: Sequence[Candidate],
    max_concurrency: Optional[int],
    capture_files: Union[bool, str],
    score_fn: Optional[Callable[[Sandbox, BranchOutcome], float]],
    on_outcome: Optional[Callable[[BranchOutcome], None]],
) -> List[BranchOutcome]:
    def run(fork: Sandbox, candidate: Candidate) -> BranchOutcome:
        outcome = _run(fork, candidate, capture_files)
        outcome.score = _score(fork, outcome, candidate, score_fn)
        if on_outcome is not None:
            try:
                on_outcome(outcome)
            except Exception:
                # Somebody's progress display is no reason to give up the experiment.
                logger.warning("on_outcome raised", exc_info=True)
        return outcome

    with ThreadPoolExecutor(max_concurrency or _DEFAULT_CONCURRENCY) as pool:
        return list(pool.map(run, forks, tries))


def _run(fork: Sandbox, candidate: Candidate, capture_files: Union[bool, str]) -> BranchOutcome:
    """One branch. Whatever it raises is its own failure and nobody else's."""
    if capture_files:
        _capture(fork, f"touch {_MARKER}")
    outcome = BranchOutcome(candidate.label, fork.id, False, 0.0, None, "", "", [], 0)
    outcome._sandbox = fork
    started = time.monotonic()
    try:
        if candidate.fn is not None:
            outcome.value = candidate.fn(fork)
            outcome.ok = True
        elif candidate.cmd is not None:
            limit = max(1, int(candidate.timeout_s))
            done = fork.exec(_with_env(candidate), timeout_seconds=limit)
            outcome.exit_code = done.exit_code
            outcome.stdout_tail, outcome.stderr_tail = _tail(done.stdout), _tail(done.stderr)
            outcome.ok = done.exit_code == 0
        else:
            outcome.error = "the candidate has neither cmd nor fn"
    except Exception as error:
        outcome.error = str(error) or type(error).__name__
        outcome.timed_out = isinstance(error, (SandboxTimeout, TimeoutError))
    outcome.duration_ms = int((time.monotonic() - started) * 1000)
    if capture_files and outcome.ok:
        roots = capture_files if isinstance(capture_files, str) else _WATCHED
        found = f"find {roots} -type f -newer {_MARKER} 2>/dev/null | head -n {_MAX_FILES}"
        outcome.files_changed = [line for line in _capture(fork, found).split("\n") if line]
    return outcome


def _score(
    fork: Sandbox,
    outcome: BranchOutcome,
    candidate: Candidate,
    score_fn: Optional[Callable[[Sandbox, BranchOutcome], float]],
) -> float:
    if candidate.score is not None:
        return float(candidate.score)
    if score_fn is None:
        return 1.0 if outcome.ok else 0.0
    try:
        return float(score_fn(fork, outcome))
    except Exception as error:
        outcome.error = outcome.error or f"score_fn raised: {error}"
        return 0.0


def _choose(
    forks: Sequence[Sandbox],
    outcomes: List[BranchOutcome],
    select: Select,
    require_success: bool,
) -> ExploreResult:
    """Ranks the outcomes; equal scores go to the faster branch, then to the earlier one."""
    sign = 1.0 if select == "min" else -1.0
    ranked = sorted(outcomes, key=lambda o: (sign * o.score, o.duration_ms))
    eligible = [o for o in ranked if o.ok or not require_success]
    if not eligible:
        told = ", ".join(f"{o.label}: {o.error or o.exit_code}" for o in outcomes)
        raise ExploreError(f"no branch can win ({told or 'no fork was made'})")
    winner = select(eligible) if callable(select) else eligible[0]
    trees = (f.metadata.get("fork_tree_id") or f.metadata.get("tree_id") for f in forks)
    tree_id = next((tree for tree in trees if tree), "")
    return ExploreResult(winner._sandbox, winner, ranked, tree_id, [], {}, [])


def _settle(result: ExploreResult, forks: Sequence[Sandbox], cleanup: bool, promote: bool) -> None:
    """Promotes the winner and deletes the others; a failure is noted, the result stands."""
    winner = result.winner
    if promote and winner is not None:
        tree_id = result.tree_id or None
        try:
            answer = winner.promote(cleanup_siblings=cleanup, tree_id=tree_id)
            result.reaped = list(answer.get("deleted") or [])
            result.reap_failures = dict(answer.get("failures") or {})
        except PandastackError as error:
            result.errors.append(f"promote failed: {error}")
    if cleanup:
        losers = [f for f in forks if winner is None or f.id != winner.id]
        failures = _kill([f for f in losers if f.id not in result.reaped])
        result.reaped = [f.id for f in losers if f.id not in failures]
        result.reap_failures = failures
    if not promote:
        result.winner = None


def _kill(forks: Sequence[Sandbox]) -> Dict[str, str]:
    failures = {}
    for fork in forks:
        try:
            fork.kill()
        except PandastackError as error:
            failures[fork.id] = str(error)
    return failures


def _capture(fork: Sandbox, command: str) -> str:
    """Output of a command of ours; the listing of files is worth no failure."""
    try:
        return fork.exec(command, timeout_seconds=_CAPTURE_SECONDS).stdout
    except PandastackError:
        return ""


def _with_env(candidate: Candidate) -> str:
    """The command after its variables, which any server understands."""
    exports = (f"export {k}={shlex.quote(str(v))}; " for k, v in (candidate.env or {}).items())
    return "".join(exports) + (candidate.cmd or "")


def _tail(text: str) -> str:
    return text.encode("utf-8", "replace")[-_TAIL_BYTES:].decode("utf-8", "ignore")
