"""Trees of messages (OASST): nested in one row, or in flat rows that follow each other.

The record's response is the answer to the first message that is ranked 0. Answers of other ranks are alternatives.
Answers later in the tree belong to conversations of several turns, and are rejected as such.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from srt_assets.core.records.forms import checks, fields
from srt_assets.core.records.forms.result import Alternative, Pair, Read, Reject, checked, is_filled, is_valid, named
from srt_assets.core.records.forms.rules import Rules

FLAT = "oasst_flat"
# Known fields of a message. `labels` and `review_count` are votes, which rank and review_result sum up.
_OWN = frozenset(
    (
        "message_id",
        "parent_id",
        "role",
        "text",
        "rank",
        "replies",
        "deleted",
        "review_result",
        "labels",
        "message_tree_id",
        "review_count",
    )
)
# At most so many messages of a tree are held in memory; the largest known tree has a few hundred.
_MOST = 10_000


def is_node(value: Any) -> bool:
    """Whether the value is a message that contains its replies."""
    return isinstance(value, dict) and isinstance(value.get("replies"), list) and "text" in value


def is_flat(row: Any) -> bool:
    """Whether the row is one message of a tree that has one row per message."""
    return (
        isinstance(row, dict)
        and "parent_id" in row
        and "text" in row
        and isinstance(row.get("message_id"), str)
        and isinstance(row.get("role"), str)
    )


@dataclass(slots=True, eq=False)
class _Node:
    """A message. `read`: the result of the row that holds it."""

    row: dict[Any, Any]
    read: Read
    index: int | None = None
    where: str = ""
    replies: "list[_Node]" = field(default_factory=list)

    def reject(self, reason: str, detail: str = "") -> None:
        self.read.rejects.append(Reject(reason, ": ".join(filter(None, (self.where, detail)))))


def whole(row: dict[Any, Any], rules: Rules, read: Read) -> None:
    """Reads a row that has a tree in `prompt`."""
    root = _Node(row["prompt"], read, where="prompt")
    open_nodes = [root]
    while open_nodes:
        node = open_nodes.pop()
        replies = node.row.get("replies")
        for number, reply in enumerate(replies if isinstance(replies, list) else []):
            where = f"{node.where}.replies[{number}]"
            if not isinstance(reply, dict):
                read.rejects.append(Reject("wrong_type", where))
                continue
            node.replies.append(_Node(reply, read, where=where))
        open_nodes += reversed(node.replies)
    _judge(root, rules)


class Flat:
    """Collects the flat rows of one tree at a time. The rows of a tree must follow each other."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._tree: Any = None
        self._nodes: list[_Node] = []

    def add(self, index: int, row: dict[Any, Any]) -> Iterator[tuple[int, Any, Read]]:
        """Take a row. Returns the rows of the previous tree if it has ended."""
        tree = row.get("message_tree_id") or (row["message_id"] if row.get("parent_id") is None else self._tree)
        if tree != self._tree or len(self._nodes) >= _MOST:
            yield from self.end()
        self._tree = tree
        self._nodes.append(_Node(row, Read(FLAT), index))

    def end(self) -> Iterator[tuple[int, Any, Read]]:
        """The rows of the current tree, in order."""
        nodes, self._nodes = self._nodes, []
        by_id = {node.row["message_id"]: node for node in nodes}
        roots = []
        for node in nodes:
            parent = node.row["parent_id"]
            if not is_filled(parent):
                roots.append(node)
            elif isinstance(parent, str) and parent in by_id:
                by_id[parent].replies.append(node)
        seen: set[int] = set()
        for root in roots:
            _judge(root, self._rules)
            seen.update(id(node) for node in _below(root))
        for node in nodes:
            if id(node) not in seen:
                node.reject("broken_tree", f"parent_id {named(node.row['parent_id'])}")
            yield node.index or 0, node.row, node.read


def _below(root: _Node) -> Iterator[_Node]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.replies


def _judge(root: _Node, rules: Rules) -> None:
    """Make the record of a tree's first message and its best answer; reject the other messages with a reason."""
    if not (_is(root, "user", rules) and _is_there(root)):
        return
    answers = [node for node in root.replies if _is(node, "assistant", rules) and _is_there(node)]
    best = _best(answers)
    if best is None:
        root.reject("no_best_answer" if answers else "no_reply")
    else:
        _record(root, best, [node for node in answers if node is not best])
    if rules.multi_turn == "first_turn":
        return
    for answer in root.replies:
        for node in _below(answer):
            if node is not answer and _kind(node, rules) == "assistant":
                node.reject("multi_turn", "an answer later in its tree")


def _record(root: _Node, best: _Node, others: list[_Node]) -> None:
    pair: Pair | Reject = checked(Pair(root.row["text"], "", best.row["text"]))
    for node in (root, best):
        for name, value in node.row.items():
            if name not in _OWN and not isinstance(pair, Reject):
                pair = fields.account(best.read, name, value, fields.OF_MESSAGE) or pair
    if isinstance(pair, Reject):
        best.reject(*pair)
        return
    best.read.records.append(pair)
    for node in others:
        rank = _rank(node)
        label = f"rank {rank}" if rank is not None else "review_result: false"
        if rank is None and not _is_refused(node):
            node.reject("no_best_answer", "it has no rank")
        elif is_valid(node.row["text"]):
            best.read.alternatives.append(Alternative("rank", label, node.row["text"], node.index))
        else:
            node.reject("invalid_text")


def _best(answers: list[_Node]) -> _Node | None:
    """The answer ranked 0; or the only answer not refused in review, if it has no rank."""
    good = [node for node in answers if not _is_refused(node)]
    first = [node for node in good if _rank(node) == 0]
    if first or len(good) != 1:
        return first[0] if len(first) == 1 else None
    return good[0] if _rank(good[0]) is None else None


def _rank(node: _Node) -> int | None:
    rank = node.row.get("rank")
    is_number = isinstance(rank, int | float) and not isinstance(rank, bool) and is_filled(rank)
    return int(rank) if is_number and abs(rank) < 1e9 else None  # type: ignore[arg-type]


def _is_refused(node: _Node) -> bool:
    return checks.verdict(node.row.get("review_result")) is False


def _kind(node: _Node, rules: Rules) -> str:
    role = node.row.get("role")
    return rules.roles.get(role.strip().lower(), "") if isinstance(role, str) else ""


def _is(node: _Node, kind: str, rules: Rules) -> bool:
    found = _kind(node, rules)
    if found != kind:
        node.reject("role_order" if found else "unknown_role", named(node.row.get("role")))
    return found == kind


def _is_there(node: _Node) -> bool:
    if checks.verdict(node.row.get("deleted")) is True:
        node.reject("deleted")
        return False
    if not isinstance(node.row.get("text"), str):
        node.reject("wrong_type", "text")
        return False
    return True
