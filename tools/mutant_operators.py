"""What a mutant changes: operators for tensor code, in place of mutmut's own set.

Kept of mutmut's are numbers, booleans, comparisons, arithmetic, augmented assignments and forced
ternaries. Left out are those that only raise (arguments made None, calls without a positional
argument). Added are those that matter where code works in place and keeps running when it is wrong:
statements and method calls that are dropped, conditions that are turned round, least for greatest.
"""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst
from mutmut.mutation import mutators

OPPOSITES = {
    "min": "max",
    "amin": "amax",
    "minimum": "maximum",
    "any": "all",
    "floor": "ceil",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "new_zeros": "new_ones",
    "chosen": "rejected",
}
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
UNSEEN_KEYWORDS = {"device", "memory_mb"}
"""What these change is where and in how large pieces something is computed, not the result."""


def drop_call(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """A call whose value nobody takes, to `pass`; methods are dropped by `drop_method`."""
    if isinstance(node.value, cst.Call) and not any(drop_method(node.value)):
        yield cst.Pass()


def drop_update(_: cst.AugAssign) -> Iterator[cst.CSTNode]:
    """`total += part` to `pass`."""
    yield cst.Pass()


def drop_method(node: cst.Call) -> Iterator[cst.CSTNode]:
    """`x.detach()` to `x`."""
    match node.func:
        case cst.Attribute(value=cst.Name("torch" | "math" | "links" | "inspect")):
            return
        case cst.Attribute(value=receiver):
            yield receiver


def drop_keyword(node: cst.Call) -> Iterator[cst.CSTNode]:
    """`f(x, dim=0)` to `f(x)`: the default takes over, or the call fails."""
    for i, arg in enumerate(node.args):
        if arg.keyword is not None and arg.keyword.value not in UNSEEN_KEYWORDS:
            args = [*node.args[:i], *node.args[i + 1 :]]
            if i == len(node.args) - 1 and args:
                args[-1] = args[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
            yield node.with_changes(args=args)


def turn_condition(node: cst.If) -> Iterator[cst.CSTNode]:
    """`if kl:` to `if not kl:`; comparisons are turned by themselves."""
    if isinstance(node.test, cst.Name | cst.Attribute | cst.Call):
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), node.test))


def opposite_attribute(node: cst.Attribute) -> Iterator[cst.CSTNode]:
    """`torch.maximum` to `torch.minimum`."""
    if node.attr.value in OPPOSITES:
        yield node.with_changes(attr=cst.Name(OPPOSITES[node.attr.value]))


def opposite_call(node: cst.Call) -> Iterator[cst.CSTNode]:
    """`max(1, n)` to `min(1, n)`, and `clamp(min=0)` to `clamp(max=0)`."""
    if isinstance(node.func, cst.Name) and node.func.value in OPPOSITES:
        yield node.with_changes(func=cst.Name(OPPOSITES[node.func.value]))
    for i, arg in enumerate(node.args):
        if arg.keyword is not None and arg.keyword.value in ("min", "max"):
            turned = arg.with_changes(keyword=cst.Name(OPPOSITES[arg.keyword.value]))
            yield node.with_changes(args=[*node.args[:i], turned, *node.args[i + 1 :]])


def other_name(node: cst.SimpleString) -> Iterator[cst.CSTNode]:
    """A name or key; messages (with a space) and docstrings are left alone."""
    text = node.raw_value
    if text and " " not in text and "\n" not in text:
        yield node.with_changes(value=repr(f"XX{text}"))


def other_operator(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """As mutmut's; -1 stays, which counts dimensions from the end and is 1 of two."""
    if not isinstance(getattr(node, "expression", None), cst.Integer):
        yield from mutators.operator_swap_op(node)


def doubled_number(node: cst.Integer | cst.Float) -> Iterator[cst.CSTNode]:
    """Twice a fraction: mutmut adds one, which is far off for small limits."""
    value = node.evaluated_value
    if isinstance(value, float) and value not in (0.0, 1.0):
        yield node.with_changes(value=repr(value * 2))


OPERATORS = [
    (cst.BaseNumber, mutators.operator_number),
    (cst.Float, doubled_number),
    (cst.SimpleString, other_name),
    (cst.Name, mutators.operator_name),
    (cst.AugAssign, mutators.operator_augmented_assignment),
    (cst.AugAssign, drop_update),
    (cst.UnaryOperation, mutators.operator_remove_unary_ops),
    (cst.CSTNode, mutators.operator_keywords),
    (cst.CSTNode, other_operator),
    (cst.IfExp, mutators.operator_if_exp),
    (cst.If, turn_condition),
    (cst.Expr, drop_call),
    (cst.Call, drop_method),
    (cst.Call, drop_keyword),
    (cst.Call, opposite_call),
    (cst.Attribute, opposite_attribute),
]
