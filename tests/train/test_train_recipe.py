"""What ships stays as it was trained: the first batches of the default recipe, byte for byte; and parts that add up to a step."""

import hashlib

import pytest
import torch
from helpers.chat_records import write_corpus
from helpers.small_models import SHAPE, spread
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core.errors import UserError
from methods.core.training import MAX_DEPTH
from specbench.targets.chat import Chat
from specbench.train import tokenizer
from specbench.train.batches import Lessons, Phase
from specbench.train.data import generate, texts
from specbench.train.data.chat import ChatFormat
from specbench.train.data.texts import Windows
from specbench.train.distributed import ALONE
from specbench.train.features import Features
from specbench.train.recipe import Recipe

# Of the trainer that made the shipped weights, on the same records: tokens, answers and places of eight steps of each text.
SHIPPED = {
    "corpus": "6ee597e0227571baf589822b5e87b98d1d216436b71f107ec34b9bd640ad8962",
    "own": "dbc6c6912004263753acfdfa1e08bdcd2150fdf2aff24b53ef6aa33771b59766",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A target in the shipped format and its windows, of the corpus and of its own text."""
    folder = tmp_path_factory.mktemp("recipe")
    source = write_corpus(folder / "c.jsonl")
    tok = tokenizer.train(source, 300)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    model = spread(LlamaForCausalLM(LlamaConfig(**{**SHAPE, **ids, "vocab_size": len(tok)})), seed=0).double()
    model.lm_head.weight[tok.eos_token_id] *= 4
    model.lm_head.weight[tok.convert_tokens_to_ids([f"<|{role}|>" for role in ("system", "user", "assistant")])] = 0.0  # never written
    chat = ChatFormat(Chat(tok), frozenset({tok.eos_token_id}))
    asked = generate.prompts(chat, source, held_out=False, per_category=8, max_prompt=60)
    generate.write(model, chat, asked, max_new=12, temperature=0.0, folder=folder / "own", world=ALONE, console=Console(quiet=True))
    found = {"corpus": texts.of_corpus(source, chat, held_out=False), "own": generate.collect(chat, asked, folder / "own")}
    return model, {name: Windows(text, 64) for name, text in found.items()}


def lessons(model, phases, parts=1):
    def features_of(windows):
        return lambda numbers_B: Features(torch.zeros(len(numbers_B), windows.seq, 1), None)

    given = [Phase(windows, features_of(windows), steps) for windows, steps in phases]
    return Lessons(model, given, parts=parts, rows=2, at_most=Recipe(seq=64).positions)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_batches_are_those_that_what_ships_was_trained_on(name, material):
    model, windows = material
    digest, taught = hashlib.sha256(), lessons(model, [(windows[name], 8)])
    for step in range(8):
        batch = taught.batch(step, 0, taught.totals(step))
        for each in (batch.tokens_BT, batch.answer_BT.long(), batch.chosen_P):
            digest.update(each.numpy().tobytes())
    assert digest.hexdigest() == SHIPPED[name]


def test_the_random_state_is_left_as_it_was_when_places_were_drawn(material):
    """A loss' noise follows the places in one stream of random numbers, as it did."""
    model, windows = material
    taught = lessons(model, [(windows["corpus"], 8)])
    batch = taught.batch(3, 0, taught.totals(3))
    noise = torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(batch.positions(32), batch.chosen_P)
    assert torch.equal(torch.rand(5), noise)


def test_the_second_text_follows_the_first_from_its_own_beginning(material):
    model, windows = material
    both, own = lessons(model, [(windows["corpus"], 3), (windows["own"], 3)]), lessons(model, [(windows["own"], 3)])
    assert torch.equal(both.batch(4, 0, both.totals(4)).tokens_BT, own.batch(1, 0, own.totals(1)).tokens_BT)


def test_parts_are_the_steps_of_a_smaller_batch_and_their_totals_add_up(material):
    model, windows = material
    whole, parts = lessons(model, [(windows["corpus"], 8)]), lessons(model, [(windows["corpus"], 4)], parts=2)
    totals_K = parts.totals(1)
    expected = torch.zeros(MAX_DEPTH, dtype=torch.long)
    for part in range(2):
        batch, alone = parts.batch(1, part, totals_K), whole.batch(2 + part, 0, whole.totals(2 + part))
        assert torch.equal(batch.tokens_BT, alone.tokens_BT)
        assert torch.equal(batch.chosen_P, alone.chosen_P)
        expected += torch.stack([alone.counts_at(alone.chosen_P + k).sum() for k in range(MAX_DEPTH)])
        assert all(int(batch.total(batch.chosen_P + k)) == int(totals_K[k]) for k in range(MAX_DEPTH))
    assert totals_K.tolist() == expected.tolist()
    assert len(set(totals_K.tolist())) > 1  # answers end: fewer places count at deeper levels


def test_a_recipe_that_trains_nothing_is_refused():
    assert Recipe().steps(1) == (1302, 2604)
    assert Recipe(regenerate=0).steps(2) == (1953, 0)
    assert Recipe(accumulate=3).step_tokens(2) == 3 * 2 * 2 * 1024
    for wrong, said in (
        ({"lr": float("nan")}, "--lr is nan"),
        ({"seq": 4}, "--seq is 4; it must be at least 10"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"schedule": "cosin"}, "unknown value of --schedule 'cosin'; did you mean 'cosine'"),
    ):
        with pytest.raises(UserError, match=said):
            Recipe(**wrong)
    with pytest.raises(UserError, match="--tokens is 4,000, less than a step's 4,096"):
        Recipe(tokens=4000).steps(2)
