"""The batches of the default recipe, byte for byte those of the shipped drafters; micro-batches that add up to a step."""

import hashlib

import pytest
import torch
from helpers.chat_records import write_corpus
from helpers.small_models import SHAPE, spread
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core.errors import UserError
from methods.core.training import LOOKAHEAD
from specbench.targets.chat import Chat
from specbench.train.data import generate, texts
from specbench.train.data.chat import ChatFormat
from specbench.train.data.texts import Windows
from specbench.train.distributed import SINGLE_PROCESS
from specbench.train.drafter_data import TrainingBatches, TrainingPhase, check_context
from specbench.train.features import Features
from specbench.train.recipe import Recipe
from specbench.train.target import train_tokenizer
from specbench.util.terminal import Console

# Hashes of the trainer that made the shipped weights, on the same records: tokens, answers and positions of eight steps of each text.
SHIPPED = {
    "corpus": "6ee597e0227571baf589822b5e87b98d1d216436b71f107ec34b9bd640ad8962",
    "own": "dbc6c6912004263753acfdfa1e08bdcd2150fdf2aff24b53ef6aa33771b59766",
}


@pytest.fixture(scope="module")
def target_and_windows(tmp_path_factory):
    """Return a target in the shipped format, and windows of the corpus and of the target's own text."""
    folder = tmp_path_factory.mktemp("recipe")
    source = write_corpus(folder / "c.jsonl")
    tok = train_tokenizer(source, 300)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    model = spread(LlamaForCausalLM(LlamaConfig(**{**SHAPE, **ids, "vocab_size": len(tok)})), seed=0).double()
    model.lm_head.weight[tok.eos_token_id] *= 4
    model.lm_head.weight[tok.convert_tokens_to_ids([f"<|{role}|>" for role in ("system", "user", "assistant")])] = 0.0  # never written
    chat = ChatFormat(Chat(tok), frozenset({tok.eos_token_id}))
    prompts = generate.choose_prompts(chat, source, held_out=False, per_category=8, max_prompt=60)
    generate.write_answers(
        model, chat, prompts, max_new=12, temperature=0.0, folder=folder / "own", world=SINGLE_PROCESS, console=Console(quiet=True)
    )
    found = {"corpus": texts.of_corpus(source, chat, held_out=False), "own": generate.collect_text(chat, prompts, folder / "own")}
    return model, {name: Windows(text, 64) for name, text in found.items()}


def batches_of(model, phases, micro_batches=1, lookahead=LOOKAHEAD):
    def features_of(windows):
        return lambda numbers_B: Features(torch.zeros(len(numbers_B), windows.seq, 1), None)

    given = [TrainingPhase(windows, features_of(windows), steps) for windows, steps in phases]
    return TrainingBatches(model, given, micro_batches=micro_batches, recipe=Recipe(seq=64, rows=2), lookahead=lookahead)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_batches_equal_those_of_the_shipped_drafters(name, target_and_windows):
    model, windows = target_and_windows
    digest, batches = hashlib.sha256(), batches_of(model, [(windows[name], 8)])
    for step in range(8):
        batch = batches.batch(step, 0, batches.totals(step))
        for each in (batch.tokens_BT, batch.answer_BT.long(), batch.chosen_P):
            digest.update(each.numpy().tobytes())
    assert digest.hexdigest() == SHIPPED[name]


def test_the_random_state_of_the_loss_follows_the_drawing_of_positions(target_and_windows):
    """The noise of a loss is drawn after the positions from the same random stream, as for the shipped drafters."""
    model, windows = target_and_windows
    batches = batches_of(model, [(windows["corpus"], 8)])
    batch = batches.batch(3, 0, batches.totals(3))
    noise = torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(batch.positions(32), batch.chosen_P)
    assert torch.equal(torch.rand(5), noise)


def test_the_second_phase_starts_at_the_beginning_of_its_text(target_and_windows):
    model, windows = target_and_windows
    both, own = batches_of(model, [(windows["corpus"], 3), (windows["own"], 3)]), batches_of(model, [(windows["own"], 3)])
    assert torch.equal(both.batch(4, 0, both.totals(4)).tokens_BT, own.batch(1, 0, own.totals(1)).tokens_BT)


@pytest.mark.parametrize("lookahead", [LOOKAHEAD, 9])
def test_micro_batches_are_steps_of_a_smaller_batch_and_their_totals_add_up(lookahead, target_and_windows):
    model, windows = target_and_windows
    whole = batches_of(model, [(windows["corpus"], 8)], lookahead=lookahead)
    split = batches_of(model, [(windows["corpus"], 4)], micro_batches=2, lookahead=lookahead)
    totals_K = split.totals(1)
    expected = torch.zeros(lookahead, dtype=torch.long)
    for index in range(2):
        batch, alone = split.batch(1, index, totals_K), whole.batch(2 + index, 0, whole.totals(2 + index))
        assert torch.equal(batch.tokens_BT, alone.tokens_BT)
        assert torch.equal(batch.chosen_P, alone.chosen_P)
        expected += torch.stack([alone.counts_at(alone.chosen_P + k).sum() for k in range(lookahead)])
        assert all(int(batch.total(batch.chosen_P + k)) == int(totals_K[k]) for k in range(lookahead))
    assert totals_K.tolist() == expected.tolist()
    assert len(set(totals_K.tolist())) > 1  # answers end: fewer positions count at deeper levels


def test_the_steps_of_a_recipe_and_bad_settings():
    assert Recipe().steps(1) == (1302, 2604)
    assert Recipe(regenerate=0).steps(2) == (1953, 0)
    assert Recipe(accumulate=3).step_tokens(2) == 3 * 2 * 2 * 1024
    for wrong, message in (
        ({"lr": float("nan")}, "--lr is nan"),
        ({"seq": 0}, "--seq is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"schedule": "cosin"}, "unknown value of --schedule 'cosin'; did you mean 'cosine'"),
    ):
        with pytest.raises(UserError, match=message):
            Recipe(**wrong)
    for lookahead in (6, 9):
        with pytest.raises(UserError, match=f"--seq is {lookahead + 3}; it must be at least {lookahead + 4} for"):
            check_context(Recipe(seq=lookahead + 3), LlamaConfig(), lookahead)
    with pytest.raises(UserError, match="--tokens is 4,000, less than a step's 4,096"):
        Recipe(tokens=4000).steps(2)
