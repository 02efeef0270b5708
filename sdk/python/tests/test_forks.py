# SPDX-License-Identifier: Apache-2.0
"""Forks, trees of them, and the experiments that are built on them."""

from __future__ import annotations

import threading
from typing import Any, Dict, List

import pytest

from pandastack import BranchOutcome, Candidate, ExploreError, Sandbox, ServerError, explore

from .fake import HERE, SANDBOX, Answer, Fake


def child(n: int, **more: Any) -> Dict[str, Any]:
    metadata = {"fork_tree_id": "tree", "fork_index": str(n)}
    return {**SANDBOX, "id": f"child-{n}", "metadata": metadata, **more}


@pytest.mark.parametrize(
    "answer",
    [
        {"sandbox": child(0), "children": [child(1)]},
        {"children": [child(0)], "id": "not-this"},
        {"children": ["child-0"]},
        child(0),
    ],
)
def test_fork_finds_the_child(fake: Fake, sandbox: Sandbox, answer: Any) -> None:
    fake.on("POST", f"{HERE}/fork", Answer(201, answer))
    fake.on("GET", "/v1/sandboxes/child-0", Answer(200, child(0)))
    forked = sandbox.fork({"a": "b"})
    assert (forked.id, forked.cpu, forked.memory_mb) == ("child-0", 2, 1024)
    assert forked.metadata["fork_parent_id"] == sandbox.id
    assert fake.only("POST", f"{HERE}/fork").json == {"metadata": {"a": "b"}}


def test_fork_without_metadata_sends_no_body(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", f"{HERE}/fork", Answer(201, child(0)))
    sandbox.client.sandboxes.fork(sandbox.id)
    assert fake.seen[-1].body == b""


@pytest.mark.parametrize("answer", [{"children": []}, {}, {"parent_id": "x", "children": None}])
def test_a_fork_that_gives_nothing_is_an_error(fake: Fake, sandbox: Sandbox, answer: Any) -> None:
    fake.on("POST", f"{HERE}/fork", Answer(201, answer))
    with pytest.raises(ServerError, match="gave no sandbox"):
        sandbox.fork()


@pytest.mark.parametrize("key", ["children", "items", "sandboxes", None])
def test_fork_tree(fake: Fake, sandbox: Sandbox, key: Any) -> None:
    children: Any = [child(0), child(1), child(2)]
    fake.on("POST", f"{HERE}/fork-tree", Answer(201, {key: children} if key else children))
    forks = sandbox.fork_tree(3, {"a": "b"})
    assert [f.id for f in forks] == ["child-0", "child-1", "child-2"]
    assert fake.seen[-1].json == {"count": 3, "metadata": {"a": "b"}}


def test_a_subclass_stays_one(fake: Fake, client: Any) -> None:
    class Mine(Sandbox):
        pass

    fake.on("POST", f"{HERE}/fork", Answer(201, child(0)))
    mine = Mine.create(client=client)
    assert type(mine) is Mine
    assert type(mine.fork()) is Mine


def test_promote(fake: Fake, sandbox: Sandbox) -> None:
    answer = {"winner": sandbox.id, "tree_id": "tree", "deleted": ["x"], "failures": {}}
    fake.on("POST", f"{HERE}/promote", Answer(200, answer))
    assert sandbox.promote(cleanup_siblings=True, tree_id="tree") == answer
    sandbox.client.sandboxes.promote(sandbox.id)
    assert [s.json for s in fake.seen] == [
        {"cleanup_siblings": True, "tree_id": "tree"},
        {"cleanup_siblings": False},
    ]


class Grove:
    """A fake that forks: every child runs commands and can be promoted and deleted."""

    def __init__(self, fake: Fake, size: int, exit_codes: List[int]) -> None:
        self.fake = fake
        children = [child(n) for n in range(size)]
        fake.on("POST", f"{HERE}/fork-tree", Answer(201, {"children": children}))
        for n, code in zip(range(size), exit_codes):
            where = f"/v1/sandboxes/child-{n}"
            result = {"stdout": f"out {n}\n", "stderr": "", "exit_code": code}
            fake.on("POST", f"{where}/exec", Answer(200, result))
            fake.on("DELETE", where, Answer(204))

    def promotes(self, n: int, **answer: Any) -> None:
        self.fake.on("POST", f"/v1/sandboxes/child-{n}/promote", Answer(200, answer))

    def deleted(self) -> List[str]:
        return [s.path.rsplit("/", 1)[1] for s in self.fake.seen if s.method == "DELETE"]

    def commands(self, n: int) -> List[str]:
        where = f"/v1/sandboxes/child-{n}/exec"
        return [s.json["cmd"] for s in self.fake.requests("POST", where)]


def test_explore_keeps_the_best(fake: Fake, sandbox: Sandbox) -> None:
    grove = Grove(fake, 3, [0, 0, 1])
    grove.promotes(1, winner="child-1", deleted=["child-0"], failures={})
    told: List[str] = []
    result = sandbox.explore(
        ["a", Candidate.shell("second", "b", env={"N": "it's"}), "c"],
        score_fn=lambda fork, outcome: 2.0 if outcome.label == "second" else 1.0,
        capture_files="/srv",
        on_outcome=lambda outcome: told.append(outcome.label),
    )
    assert result.winner is not None
    assert result.winner.id == "child-1"
    assert result.outcomes[0].label == "second"
    assert sorted(told) == ["a", "c", "second"]
    assert result.tree_id == "tree"
    # The server deleted child-0; the one that it did not name is deleted here.
    assert grove.deleted() == ["child-2"]
    assert sorted(result.reaped) == ["child-0", "child-2"]
    mark, run, find = grove.commands(1)
    assert mark.startswith("touch ")
    assert run == "export N='it'\"'\"'s'; b"
    assert find.startswith("find /srv ")
    assert fake.only("POST", "/v1/sandboxes/child-1/promote").json["tree_id"] == "tree"
    metadata = fake.only("POST", f"{HERE}/fork-tree").json["metadata"]
    assert metadata == {"explore": "1", "explore_ttl": "600"}
    assert result.best(1)[0].files_changed == ["out 1"]
    assert "* second" in result.table()


def test_explore_takes_functions_and_known_scores(fake: Fake, sandbox: Sandbox) -> None:
    grove = Grove(fake, 3, [0, 0, 0])
    grove.promotes(2, deleted=["child-0", "child-1"])

    def broken(fork: Sandbox) -> None:
        raise RuntimeError("no luck")

    result = explore(
        sandbox,
        [
            Candidate.call("broken", broken),
            Candidate.call("good", lambda fork: fork.id, score=1.0),
            Candidate("better", fn=lambda fork: fork.id, score=0.5),
        ],
        select="min",
        capture_files=False,
    )
    assert result.winner_outcome is not None
    assert result.winner_outcome.value == "child-2"
    failed = next(o for o in result.outcomes if o.label == "broken")
    assert (failed.ok, failed.error) == (False, "no luck")
    assert grove.deleted() == []


def test_explore_without_a_winner_leaves_nothing(fake: Fake, sandbox: Sandbox) -> None:
    grove = Grove(fake, 2, [1, 2])
    with pytest.raises(ExploreError, match="a: 1, b: 2"):
        sandbox.explore(["a", "b"], capture_files=False)
    assert sorted(grove.deleted()) == ["child-0", "child-1"]


def test_a_failed_branch_may_win_if_allowed(fake: Fake, sandbox: Sandbox) -> None:
    Grove(fake, 1, [1]).promotes(0)
    result = sandbox.explore(["a"], require_success=False, capture_files=False)
    assert result.winner is not None


def test_a_selector_that_raises_leaves_nothing(fake: Fake, sandbox: Sandbox) -> None:
    grove = Grove(fake, 2, [0, 0])

    def confused(outcomes: List[BranchOutcome]) -> BranchOutcome:
        raise KeyError("?")

    with pytest.raises(KeyError):
        sandbox.explore(["a", "b"], select=confused, capture_files=False)
    assert sorted(grove.deleted()) == ["child-0", "child-1"]


def test_losers_and_winner_can_be_left_alone(fake: Fake, sandbox: Sandbox) -> None:
    grove = Grove(fake, 2, [0, 0])
    result = sandbox.explore(
        ["a", "b"], promote_winner=False, cleanup_losers=False, capture_files=False
    )
    assert result.winner is None
    assert result.winner_outcome is not None
    assert grove.deleted() == []


def test_a_failed_promotion_is_noted(fake: Fake, sandbox: Sandbox) -> None:
    grove = Grove(fake, 2, [0, 1])
    fake.on("POST", "/v1/sandboxes/child-0/promote", Answer(500, {"error": "busy"}))
    result = sandbox.explore(["a", "b"], capture_files=False)
    assert result.errors == ["promote failed: busy"]
    assert grove.deleted() == ["child-1"]


def test_fewer_forks_than_candidates(fake: Fake, sandbox: Sandbox) -> None:
    Grove(fake, 1, [0]).promotes(0)
    result = sandbox.explore(["a", "b"], capture_files=False)
    assert [o.label for o in result.outcomes] == ["a"]
    assert "room for 1" in result.errors[0]


def test_the_number_of_candidates_is_checked_first(fake: Fake, sandbox: Sandbox) -> None:
    for many in ([], ["x"] * 17):
        with pytest.raises(ExploreError, match="1 to 16"):
            sandbox.explore(many)
    assert fake.seen == []


def test_branches_run_side_by_side(fake: Fake, sandbox: Sandbox) -> None:
    Grove(fake, 3, [0, 0, 0]).promotes(0)
    together = threading.Barrier(3, timeout=10)
    candidates = [Candidate.call(str(n), lambda fork: together.wait()) for n in range(3)]
    result = sandbox.explore(candidates, max_concurrency=3, capture_files=False)
    assert all(o.ok for o in result.outcomes)
