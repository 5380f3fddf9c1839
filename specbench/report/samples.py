"""Sample outputs: one question per category with the answers of all arms, cut where steps begin."""

from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from methods.core.errors import UserError
from specbench import suites
from specbench.config.arm import BASELINE
from specbench.report.blocks import Block, Paragraph, Sample, SampleAnswer, TextPiece
from specbench.report.run import Run
from specbench.store.manifest import RunManifest
from specbench.store.records import Record, Steps
from specbench.suites import TITLES

OWN_SUITES = ("mini",)  # suites whose prompts may be published; the prompts of others are their authors'
CHOICE = "These are the first turns of the first question in each category that every arm answered."
CUT = (
    "A bar begins each step: the text between two bars is what one step emitted. Its last token, underlined in HTML, is the target's "
    "own. Vanilla's text is not cut."
)
NOT_CUT = "The texts are not cut into steps, because the target's tokenizer is not here or does not reproduce them."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
Decode = Callable[[Sequence[int]], str]


def blocks(run: Run, show_prompts: bool) -> list[Block]:
    """Return an explanation and one sample per category; nothing if no question has every arm's answer.

    Raises UserError if prompts are wanted and the run's suite cannot be loaded.
    """
    chosen = _chosen(run)
    if not chosen:
        return []
    decode = target_decoder(run.manifest)
    prompts = _prompts(run.manifest) if show_prompts or run.manifest.settings.suite in OWN_SUITES else {}
    samples = [_sample(run, answers, decode, prompts.get(next(iter(answers.values())).question_id)) for answers in chosen]
    is_cut = any(len(answer.pieces) > 1 for sample in samples for answer in sample.answers)
    return [Paragraph(f"{CHOICE} {CUT if is_cut else NOT_CUT}"), *samples]


def pieces(record: Record, decode: Decode) -> tuple[TextPiece, ...]:
    """Return the output, cut where steps end and where their bonus tokens begin.

    A character made of several tokens goes to the piece that completes it, so the pieces always concatenate to the
    text. The output is a single piece if ``decode`` does not reproduce its text.
    """
    text = record.output_text
    if record.timing == "answer" or decode(record.output_ids) != text:
        return (TextPiece(text, 0, False),)
    cut, start = [], 0
    for tokens, step, bonus in _ends(record.steps, record.prefill_tokens):
        head = decode(record.output_ids[:tokens])
        if text.startswith(head) and len(head) > start:
            cut.append(TextPiece(text[start : len(head)], step, bonus))
            start = len(head)
    assert start == len(text), "the last cut is the whole text"
    return tuple(cut)


def _ends(steps: Steps, tokens: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (output tokens so far, step, whether the last one is a bonus) at each cut.

    ``tokens`` is the number of the prefill's output tokens. A clipped step loses its bonus first.
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
    """Return the first turns of one question per category, by arm.

    It is the question with the lowest id that has a text from every arm that wrote any.
    """
    first: dict[str, dict[str, Record]] = {}
    for record in run.stored.records:
        if record.turn == record.repeat == 0 and record.arm in run.shown and record.output_text.strip():
            first.setdefault(record.question_id, {})[record.arm] = record
    arms = {arm for answers in first.values() for arm in answers}
    by_category: dict[str, dict[str, Record]] = {}

    for question in sorted(first, key=lambda name: (len(name), name)):  # 81 before 100
        if first[question].keys() == arms and len(arms) > 1:
            by_category.setdefault(next(iter(first[question].values())).category, first[question])
    return [by_category[category] for category in run.manifest.suite.categories if category in by_category]


def _sample(run: Run, answers: dict[str, Record], decode: Decode | None, prompt: str | None) -> Sample:
    vanilla = answers.get(BASELINE)
    columns = [_answer(label, answers[name], vanilla, decode) for name, label in run.shown.items() if name in answers]
    record = next(iter(answers.values()))
    return Sample(f"{TITLES.get(record.category, record.category)}, question {record.question_id}", prompt, columns)


def _answer(label: str, record: Record, vanilla: Record | None, decode: Decode | None) -> SampleAnswer:
    steps = len(record.steps.emitted)
    note = [f"{record.token_count} tokens{f' in {steps} steps' if record.timing != 'answer' else ''}"]
    if record.arm == BASELINE or decode is None:
        shown: tuple[TextPiece, ...] = (TextPiece(record.output_text, 0, False),)
    else:
        shown = pieces(record, decode)
    if vanilla is not None and record is not vanilla and record.output_ids:
        note.append("vanilla's tokens" if record.output_ids == vanilla.output_ids else "differs from vanilla")
    if record.stop == "length":
        note.append("cut by length")
    return SampleAnswer(label, ", ".join(note), shown)


def target_decoder(manifest: RunManifest) -> Decode | None:
    """Return the function that turns the target's token ids into text; None if its tokenizer is not on this machine."""
    folder = _tokenizer_folder(manifest)
    try:
        tokenizer = None if folder is None else _load_tokenizer(folder)
    except Exception:  # the library raises plain Exception for a file that it cannot read
        return None
    if tokenizer is None:
        return None
    size = tokenizer.get_vocab_size()

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids))) if max(ids, default=0) < size else ""

    return decode


def _load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer without torch where its file allows it."""
    file = folder / TOKENIZER_FILES[0]
    if file.is_file():
        return Tokenizer.from_file(str(file))
    from specbench.targets import checkpoint  # reads SentencePiece models, imports torch

    return checkpoint.load_tokenizer(folder).backend_tokenizer


def _tokenizer_folder(manifest: RunManifest) -> Path | None:
    """Return the folder of the target's tokenizer: a local one, that of the shipped target, or the hub's cache."""
    name, revision = manifest.settings.target, manifest.settings.revision
    if Path(name).is_dir():
        return Path(name)
    if "/" not in name:
        return Path(str(resources.files("specbench"))) / "targets" / "tiny"
    try:
        cached = [try_to_load_from_cache(name, file, revision=revision) for file in TOKENIZER_FILES]
    except ValueError:  # a folder that is gone, not a hub id
        return None
    return next((Path(file).parent for file in cached if isinstance(file, str)), None)


def _prompts(manifest: RunManifest) -> dict[str, str]:
    """Return the first turns of the run's suite, by question id."""
    settings = manifest.settings
    suite = suites.load(settings.suite, suite_file=settings.suite_file, hf_columns=settings.hf_columns)
    if suite.sha256 == manifest.suite.sha256:
        return {question.id: question.turns[0] for question in suite.questions}
    if settings.suite in OWN_SUITES:
        return {}
    here, then = suite.sha256[:12], manifest.suite.sha256[:12]
    raise UserError(f"suite {settings.suite} here (sha256 {here}) is not the run's ({then}); leave --show-prompts out")
