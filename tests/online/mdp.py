"""An MDP small enough to enumerate: three steps of three tokens, 27 responses, 13 states.

The gradient of a configuration is its expectation over all responses, or all groups of them, of the
gradient of Palate's own losses: nothing is sampled. What it converges to is found besides by other
means, which use no loss: closed forms, backward induction, iteration over whole responses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY, STEPS, BETA = 3, 3, 0.5
F64 = {"dtype": torch.float64}
Solve = Callable[[Tensor, Tensor], Tensor]
"""(log-probs of the reference in a state, worth of each token) -> log-probs of the policy there."""


@dataclass(frozen=True)
class Mdp:
    """M responses of STEPS tokens, and D states: the prefixes that are no whole response.

    Attributes:
        tokens, states: [M, STEPS] token drawn at each step, and the state it is drawn in.
        ref: [D, VOCABULARY] log-probs of the reference.
        scores: [M] reward of each response.
    """

    tokens: Tensor
    states: Tensor
    ref: Tensor
    scores: Tensor

    @classmethod
    def drawn(cls, seed: int) -> Mdp:
        g = torch.Generator().manual_seed(seed)
        responses = list(itertools.product(range(VOCABULARY), repeat=STEPS))
        prefixes = sorted(
            {r[:n] for r in responses for n in range(STEPS)}, key=lambda p: (len(p), p)
        )
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        return cls(
            tokens=torch.tensor(responses),
            states=torch.tensor([[number[r[:n]] for n in range(STEPS)] for r in responses]),
            ref=torch.randn(len(prefixes), VOCABULARY, generator=g, **F64).log_softmax(1),
            scores=torch.randn(len(responses), generator=g, **F64),
        )

    @property
    def segment(self) -> Tensor:
        """[M * STEPS] response of each token, flat as the losses take them."""
        return torch.arange(len(self.tokens)).repeat_interleave(STEPS)

    def of_tokens(self, table: Tensor) -> Tensor:
        """[M * STEPS] entries of a [D, VOCABULARY] table at each response's tokens."""
        return table[self.states, self.tokens].flatten()

    def of_states(self, values: Tensor) -> Tensor:
        """[M * STEPS] entries of [D] values at each response's states."""
        return values[self.states].flatten()

    def logs(self, table: Tensor) -> Tensor:
        """[M] log-probs of the responses under log-probs [D, VOCABULARY]."""
        return table[self.states, self.tokens].sum(1)

    def visits(self, table: Tensor) -> Tensor:
        """[D] probability that a response passes through each state."""
        mass = self.logs(table).exp()[:, None].expand(-1, STEPS)
        return torch.zeros(len(self.ref), **F64).index_add(0, self.states.flatten(), mass.flatten())

    def conditional(self, responses: Tensor) -> Tensor:
        """[D, VOCABULARY] log-probs of the policy whose responses have these probabilities [M]."""
        mass = torch.zeros(len(self.ref), VOCABULARY, **F64)
        mass = mass.index_put(
            (self.states.flatten(), self.tokens.flatten()),
            responses[:, None].expand(-1, STEPS).flatten(),
            accumulate=True,
        )
        return (mass / mass.sum(1, keepdim=True)).log()

    def average(self, table: Tensor, values: Tensor) -> Tensor:
        """[D, VOCABULARY] mean of response values [M] after each token, under the policy."""
        p = self.logs(table).exp()
        total, mass = torch.zeros(2, len(self.ref), VOCABULARY, **F64)
        where = (self.states.flatten(), self.tokens.flatten())
        total = total.index_put(
            where, (p * values)[:, None].expand(-1, STEPS).flatten(), accumulate=True
        )
        mass = mass.index_put(where, p[:, None].expand(-1, STEPS).flatten(), accumulate=True)
        return total / mass

    def kl(self, table: Tensor, other: Tensor) -> float:
        """KL of the responses of one policy to those of another, in nats."""
        logs = self.logs(table)
        return float((logs.exp() * (logs - self.logs(other))).sum())

    # --- fixed points, by other means ----------------------------------------------------------

    def tilted(self, exponent: Tensor) -> Tensor:
        """[D, VOCABULARY] of the policy reference(y) exp(exponent(y)) / Z over responses."""
        return self.conditional((self.logs(self.ref) + exponent).softmax(0))

    @property
    def optimum(self) -> Tensor:
        """reference exp(score / BETA) / Z: where reward less BETA times KL is greatest."""
        return self.tilted(self.scores / BETA)

    def by_induction(self, solve: Solve, scores: Tensor | None = None) -> Tensor:
        """From the last step to the first: (reference, mean score after each token) -> log-probs.

        The mean is under the policy of the later steps, without their KL.

        Args:
            scores: [M]; default: the MDP's.
        """
        table = self.ref.clone()
        for step in reversed(range(STEPS)):
            q = self.average(table, self.scores if scores is None else scores)
            for state in self.states[:, step].unique():
                table[state] = solve(self.ref[state], q[state])
        return table

    def by_iteration(self, answer: Callable[[Tensor], Tensor]) -> Tensor:
        """[D, VOCABULARY] log-probs that answer to themselves.

        Damped, since an answer to the whole of a move would oscillate.

        Args:
            answer: [M] probabilities of the responses -> log-probs of the policy that they make.
        """
        p = self.logs(self.ref).exp()
        for _ in range(10_000):
            following = self.logs(answer(p)).exp()
            if (following - p).abs().max() < 1e-14:
                return answer(p)
            p = 0.7 * p + 0.3 * following
        raise AssertionError("no fixed point")


def exponential_tilt(ref: Tensor, q: Tensor) -> Tensor:
    """Of one state: pi q - BETA KL(pi || ref) is greatest at ref exp(q / BETA) / Z."""
    return (ref + q / BETA).log_softmax(0)


def forward_kl_step(ref: Tensor, q: Tensor) -> Tensor:
    """Of one state: pi q - BETA KL(ref || pi) is greatest at BETA ref / (c - q), c by bisection."""
    low, high = float(q.max()), float(q.max()) + BETA * len(q) + 1.0
    for _ in range(200):
        c = 0.5 * (low + high)
        low, high = (c, high) if float((BETA * ref.exp() / (c - q)).sum()) > 1 else (low, c)
    return (BETA * ref.exp() / (0.5 * (low + high) - q)).log()


def converge(
    mdp: Mdp,
    loss: Callable[[Tensor], Tensor],
    *,
    rate: float,
    steps: int = 2000,
    tolerance: float | None = 1e-10,
) -> Tensor:
    """[D, VOCABULARY] log-probs where the gradient of `loss` is 0, from the reference on.

    Steps along the natural gradient (the gradient over each token's probability), whose fixed
    points are those of plain descent.

    Args:
        loss: log-probs [D, VOCABULARY] -> scalar whose gradient is the expected one.
        tolerance: of the last step, in nats; None: all steps, for what has no fixed point inside.
    """
    table = mdp.ref
    for _ in range(steps):
        logits = table.clone().requires_grad_()
        table = logits.log_softmax(1)
        (slope,) = torch.autograd.grad(loss(table), logits)
        table = table.detach()
        move = rate * slope / (mdp.visits(table)[:, None] * table.exp())
        table = (table - move).log_softmax(1)
        if tolerance is not None and move.abs().max() < tolerance:
            return table
    if tolerance is None:
        return table
    raise AssertionError(f"not converged: the last step was {float(move.abs().max()):.1e} nats")


def groups(n: int, size: int) -> tuple[Tensor, Tensor]:
    """[K, size] every multiset of responses, and [K] in how many orders each is drawn."""
    rows = list(itertools.combinations_with_replacement(range(n), size))
    orders = []
    for row in rows:
        repeats = math.prod(math.factorial(row.count(i)) for i in set(row))
        orders.append(math.factorial(size) / repeats)
    return torch.tensor(rows), torch.tensor(orders, **F64)
