"""A suite: questions, the categories they are reported under, and a deterministic choice among them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from methods.core.errors import UserError, unknown

TITLES = {
    "mt_bench": "Multi-turn",
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "QA",
    "math_reasoning": "Math reasoning",
    "rag": "RAG",
}
# MT-bench's topics are reported as one category. `math` is one of them; `math_reasoning` is not.
MT_BENCH_TOPICS = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})


def reported_category(raw_category: str) -> str:
    """Return the category that a raw category name is reported under; names unknown to Spec-Bench stay as they are."""
    return "mt_bench" if raw_category in MT_BENCH_TOPICS else raw_category


@dataclass(frozen=True)
class Question:
    """One prompt of one or more user turns; ``category`` is the reported one, ``reference`` may be empty."""

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """Questions under a name. ``sha256`` is of the whole source, so it does not depend on a selection."""

    name: str
    version: str
    questions: tuple[Question, ...]
    sha256: str


def select(suite: Suite, *, limit: int | None, categories: Sequence[str]) -> Suite:
    """Reduce a suite to ``categories`` (all if empty) and to ``limit`` questions of each, evenly spaced, in suite order.

    Raises UserError for a category the suite does not have and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} is below 1; pass the number of questions to take from each category, or leave it out for all")

    by_category: dict[str, list[Question]] = defaultdict(list)
    for question in suite.questions:
        by_category[question.category].append(question)
    for category in categories:
        if category not in by_category:
            raise unknown(f"category of suite {suite.name}", category, by_category)

    chosen: set[str] = set()
    for category in categories or by_category:
        members = by_category[category]
        count = min(limit or len(members), len(members))
        chosen.update(members[i * len(members) // count].id for i in range(count))
    return replace(suite, questions=tuple(question for question in suite.questions if question.id in chosen))
