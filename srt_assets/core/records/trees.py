"""Trees of messages (OASST): nested in one row, or flat rows that need their neighbours.

The answer ranked 0 to the first message is the record's response, other ranks are alternatives. What is said later in
the tree is a conversation of several turns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from srt_assets.core.records import checks, fields
from srt_assets.core.records.result import Alternative, Pair, Read, Reject, checked, is_filled, is_valid, named
from srt_assets.core.records.rules import Rules

FLAT = "oasst_flat"
# What is read of a message; `labels` and `review_count` are votes on it, of which rank and review_result are the sum.
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
# Messages of one tree that are held; the largest known tree has a few hundred.
_MOST = 10_000


def is_node(value: Any) -> bool:
    """Whether this is a message with the replies to it inside."""
    return isinstance(value, dict) and isinstance(value.get("replies"), list) and "text" in value


def is_flat(row: Any) -> bool:
    """Whether this is a message of a tree of which each message is a row."""
    return (
        isinstance(row, dict)
        and "parent_id" in row
        and "text" in row
        and isinstance(row.get("message_id"), str)
        and isinstance(row.get("role"), str)
    )


@dataclass(slots=True, eq=False)
class _Node:
    """A message; `read`: what became of the row it stands in."""

    row: dict[Any, Any]
    read: Read
    index: int | None = None
    where: str = ""
    replies: "list[_Node]" = field(default_factory=list)

    def reject(self, reason: str, detail: str = "") -> None:
        self.read.rejects.append(Reject(reason, ": ".join(filter(None, (self.where, detail)))))


def whole(row: dict[Any, Any], rules: Rules, read: Read) -> None:
    """A row that holds a tree in `prompt`."""
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
    """Flat rows of one tree at a time: rows of a tree are taken to follow each other."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._tree: Any = None
        self._nodes: list[_Node] = []

    def add(self, index: int, row: dict[Any, Any]) -> Iterator[tuple[int, Any, Read]]:
        """Take a row; gives the rows of the tree before it, if that has ended."""
        tree = row.get("message_tree_id") or (row["message_id"] if row.get("parent_id") is None else self._tree)
        if tree != self._tree or len(self._nodes) >= _MOST:
            yield from self.end()
        self._tree = tree
        self._nodes.append(_Node(row, Read(FLAT), index))

    def end(self) -> Iterator[tuple[int, Any, Read]]:
        """The rows that wait, in their order."""
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
    """Make the record of a tree's first message and its best answer; say of all others why they are none."""
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
    """The answer ranked 0; or the only one, if it is not judged."""
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
