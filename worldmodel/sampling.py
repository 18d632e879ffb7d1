"""Draws tokens from scores by a stateless source of randomness, so that a row of a batch is drawn as if it were alone."""

from __future__ import annotations

import torch
from torch import Tensor


def hashed_uniform(key: Tensor, *counters: Tensor) -> Tensor:
    """Return numbers strictly between 0 and 1, float32, from int64 keys and counters that broadcast: a stateless random source.

    Each is a finalised SplitMix64 hash (Steele, Lea, Flood, OOPSLA 2014), so the number of one agent of one scene does not depend
    on who else is in the batch.
    """
    mixed = key
    for counter in counters:
        mixed = mixed + (counter + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15
        mixed = (mixed ^ ((mixed >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
        mixed = (mixed ^ ((mixed >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
        mixed = mixed ^ ((mixed >> 31) & 0x1FFFFFFFF)
    return (((mixed >> 41) & 0x7FFFFF).float() + 0.5) / 2**23  # 23 bits: a 24th would round up to 1


def hashed_normal(key: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers (N, *shape) from keys and steps (N,), each row as if it were alone."""
    uniform = hashed_uniform(key[:, None], step[:, None], torch.arange(torch.Size(shape).numel()))
    return (2.0**0.5 * (2.0 * uniform - 1.0).erfinv()).view(len(key), *shape)


def sample_tokens(scores: Tensor, key: Tensor, step: Tensor, temperature: float, epsilon: float, most: int = 128) -> Tensor:
    """Draw a token for each agent among those of at least the probability `epsilon` (Hewitt et al., arXiv 2210.15191).

    A nucleus of a share of the probability, the usual choice, never lets anyone start who stands, as standing is its likeliest
    token by far; yet the little that is left, again at every decision, makes queues move.

    Args:
        scores: (B, A, V); an agent of a kind without tokens has no finite score and gets token 0.
        key: (B,) int64 random keys.
        step: (B,) int64, mixed into the key.
        temperature: divides the scores before anything else; small is bold towards the likeliest.
        epsilon: in [0, 1); the likeliest token stays in any case.
        most: tokens considered at the most, the likeliest ones.

    Returns:
        (B, A) int64. Gumbel noise is hashed from key, step, agent and token, so a row is drawn as if it were alone.
    """
    best, token = scores.topk(min(most, scores.shape[-1]), dim=-1)
    outside = (scores / temperature).softmax(-1).gather(-1, token) < epsilon
    outside[..., 0] = False  # else who has no likely token would be left with none
    best = torch.where(best[..., :1].isfinite(), best, 0.0) / temperature
    agent = torch.arange(scores.shape[1])[None, :, None]
    noise = hashed_uniform(key[:, None, None], step[:, None, None], agent, token)
    drawn = (best - (-noise.log()).log()).masked_fill(outside, -torch.inf).argmax(-1, keepdim=True)
    return torch.where(scores.isfinite().any(-1), token.gather(-1, drawn)[..., 0], 0)
