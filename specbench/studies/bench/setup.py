"""What the benchmark runs on: a few questions of the mini suite, vanilla on both back ends and prompt lookup, no trained drafter."""

from specbench.config.options import Options
from specbench.measure.session import Session, prepare
from specbench.store.records import BASELINE

MAX_NEW_TOKENS = 64
QUESTIONS = 2  # a category
LOOKUP_TOKENS = 10  # generate's default of prompt lookup
LOOKUP_NGRAM = 3
EAGER, STATIC, LOOKUP = BASELINE, f"{BASELINE}:backend=static", "pld"
ARMS = (EAGER, STATIC, LOOKUP)


def prepared(target: str | None = None, *, dtype: str | None = None, device: str | None = None) -> Session:
    """The benchmark's session, its arms ``ARMS``; None stands for the defaults of ``specbench run``."""
    return prepare(
        Options(
            methods=ARMS,
            target=target,
            limit=QUESTIONS,
            max_new_tokens=MAX_NEW_TOKENS,
            dtype=dtype,
            device=device,
            backend="eager",
            overrides=[f"pld.nodes={LOOKUP_TOKENS}", f"pld.max_ngram={LOOKUP_NGRAM}"],
        )
    )


def conditions(session: Session) -> str:
    """What the numbers hold for, in a line or two."""
    settings, facts, where = session.manifest.settings, session.manifest.target, session.manifest.environment
    line = (
        f"{facts['name']}, {settings.dtype}, {settings.attention}, {where['gpu'] or where['cpu']}, {where['threads']} threads, "
        f"torch {where['torch']}, transformers {where['transformers']}; {settings.max_new_tokens} new tokens, greedy"
    )
    return "\n".join(filter(None, (line, facts["note"])))
