"""The restriction of logits to their likeliest tokens by transformers' own warpers."""

from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper


def warped(scores, top_k, top_p):
    """The scores, two-dimensional and divided by the temperature, with -inf for tokens that are not sampled."""
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    return TopPLogitsWarper(top_p)(None, scores)
