"""One question a category with every arm's output side by side, cut at the steps so that accepted runs of tokens are seen."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from methods.core.errors import UserError
from specbench import suites
from specbench.report.blocks import Answer, Block, Paragraph, Piece, Sample
from specbench.report.run import Run
from specbench.store.manifest import RunManifest
from specbench.store.records import BASELINE, Record, Steps
from specbench.suites import TITLES

OWN_SUITES = ("mini",)  # ours to print; others' prompts are their authors'
Decode = Callable[[Sequence[int]], str]


def blocks(run: Run, show_prompts: bool) -> list[Block]:
    """What to look for, then a sample a category; nothing where no question has every arm's answer.

    Raises UserError where prompts are wanted and the run's suite cannot be read again.
    """
    chosen = _chosen(run)
    if not chosen:
        return []
    decode = _decoder(run.manifest)
    prompts = _prompts(run.manifest) if show_prompts or run.manifest.settings.suite in OWN_SUITES else {}
    found = [_sample(run, answers, decode, prompts.get(next(iter(answers.values())).question_id)) for answers in chosen]
    cut = any(len(answer.pieces) > 1 for sample in found for answer in sample.answers)
    how = (
        "The first question of each category that every arm answered, first turn. A bar begins each step: what stands between two bars "
        "was accepted in one round, the last token of it (underlined in HTML) being the target's own. Vanilla's text is not cut."
        if cut
        else "The first question of each category that every arm answered, first turn. The texts are not cut into steps, because the "
        "target's tokenizer is not at hand or does not give them back."
    )
    return [Paragraph(how), *found]


def pieces(record: Record, decode: Decode) -> tuple[Piece, ...]:
    """The output cut where steps end and where their bonus token begins; a single piece where ``decode`` does not give it back.

    A character spread over several tokens goes to the piece that completes it, so the pieces always concatenate to the text.
    """
    text = record.output_text
    if record.timing == "answer" or decode(record.output_ids) != text:
        return (Piece(text, 0, False),)
    found, start = [], 0
    for tokens, step, bonus in _ends(record.steps, record.prefill_tokens):
        head = decode(record.output_ids[:tokens])
        if text.startswith(head) and len(head) > start:
            found.append(Piece(text[start : len(head)], step, bonus))
            start = len(head)
    assert start == len(text), "the last cut is the whole text"
    return tuple(found)


def _ends(steps: Steps, tokens: int) -> Iterator[tuple[int, int, bool]]:
    """(output tokens so far, step, whether the last of them is a bonus) at each cut; clipping takes the bonus first.

    ``tokens`` are the prefill's.
    """
    yield tokens, 0, False
    for step, (accepted, emitted) in enumerate(zip(steps.accepted, steps.emitted, strict=True), start=1):
        drafts = min(accepted, emitted)
        if drafts:
            yield tokens + drafts, step, False
        if emitted > drafts:
            yield tokens + emitted, step, True
        tokens += emitted


def _chosen(run: Run) -> list[dict[str, Record]]:
    """For each category the first turns of one question, by arm: the lowest id with a text from every arm that has any."""
    first: dict[str, dict[str, Record]] = {}
    for record in run.records:
        if record.turn == record.repeat == 0 and record.method in run.shown and record.output_text.strip():
            first.setdefault(record.question_id, {})[record.method] = record
    arms = {method for answers in first.values() for method in answers}
    by_category: dict[str, dict[str, Record]] = {}
    for question in sorted(first, key=lambda name: (len(name), name)):  # 81 before 100
        if first[question].keys() == arms and len(arms) > 1:
            by_category.setdefault(next(iter(first[question].values())).category, first[question])
    return [by_category[category] for category in run.manifest.categories if category in by_category]


def _sample(run: Run, answers: dict[str, Record], decode: Decode | None, prompt: str | None) -> Sample:
    vanilla = answers.get(BASELINE)
    columns = [_answer(label, answers[name], vanilla, decode) for name, label in run.shown.items() if name in answers]
    one = next(iter(answers.values()))
    return Sample(f"{TITLES.get(one.category, one.category)}, question {one.question_id}", prompt, columns)


def _answer(label: str, record: Record, vanilla: Record | None, decode: Decode | None) -> Answer:
    steps = len(record.steps.emitted)
    note = [f"{record.token_count} tokens{f' in {steps} steps' if record.timing != 'answer' else ''}"]
    if record.method == BASELINE or decode is None:
        shown: tuple[Piece, ...] = (Piece(record.output_text, 0, False),)
    else:
        shown = pieces(record, decode)
    if vanilla is not None and record is not vanilla and record.output_ids:
        note.append("vanilla's tokens" if record.output_ids == vanilla.output_ids else "differs from vanilla")
    if record.stop == "length":
        note.append("cut by length")
    return Answer(label, ", ".join(note), shown)


def _decoder(manifest: RunManifest) -> Decode | None:
    """The target's tokenizer as the runner reads ids back; None for a target that is not on this machine."""
    from specbench.targets import TARGETS, checkpoint, hub, shipped_folder  # seconds to import: only when there is something to cut

    asked = manifest.settings
    folder = shipped_folder() if asked.target in TARGETS else hub.cached(asked.target, asked.revision)
    if folder is None:
        return None
    try:
        tokenizer = checkpoint.tokenizer(folder)
    except (OSError, ValueError, UserError):
        return None
    size = len(tokenizer)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)) if max(ids, default=0) < size else ""

    return decode


def _prompts(manifest: RunManifest) -> dict[str, str]:
    """First turns by question id, of the very suite the run asked."""
    asked = manifest.settings
    source = Path(manifest.suite_file) if manifest.suite_file else None
    suite = suites.load(asked.suite, suite_file=source, hf_columns=manifest.hf_columns)
    if suite.sha256 == asked.suite_sha256:
        return {question.id: question.turns[0] for question in suite.questions}
    if asked.suite in OWN_SUITES:
        return {}
    raise UserError(
        f"suite {asked.suite} here (sha256 {suite.sha256[:12]}) is not the run's ({asked.suite_sha256[:12]}); leave --show-prompts out"
    )
