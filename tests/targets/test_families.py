"""The table of model families: its entries, and how a target is found in it."""

import json
import shutil
from typing import Any

import pytest
from helpers.tiny_target import write_target
from transformers import MistralConfig, MistralForCausalLM

from methods.core.errors import UserError
from methods.registry import METHODS
from specbench import targets
from specbench.cli.app import main
from specbench.targets import families, hub
from specbench.targets.chat import CHAT, TEMPLATES
from specbench.targets.families import FAMILIES, drafter_of, family_of

KINDS = {row.weights for row in METHODS.values()}
VICUNA = "lmsys/vicuna-7b-v1.3"


def test_the_table_holds_hub_ids_known_kinds_and_known_templates():
    assert len(set(families.hub_ids())) == len(families.hub_ids())
    assert all(hub.ID.fullmatch(identity) for identity in families.hub_ids())
    for family in FAMILIES:
        assert family.template in (CHAT, *TEMPLATES)
        for drafters in family.targets.values():
            assert drafters.keys() <= KINDS
            assert all(hub.ID.fullmatch(drafter) for drafter in drafters.values())


def test_drafters_are_found_by_hub_id_in_any_case_and_by_former_names():
    assert drafter_of(VICUNA, "medusa") == "FasterDecoding/medusa-vicuna-7b-v1.3"
    assert drafter_of("LMSys/Vicuna-7B-v1.3", "eagle") == "yuhuili/EAGLE-Vicuna-7B-v1.3"
    assert drafter_of("lmsys/vicuna-13b-v1.3", "eagle3") == "yuhuili/EAGLE3-Vicuna1.3-13B"
    assert drafter_of("meta-llama/Meta-Llama-3.1-8B-Instruct", "eagle3") == "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"
    assert drafter_of(VICUNA, "eagle3") is None
    assert drafter_of(VICUNA, "nonsense") is None
    assert drafter_of("someone/vicuna-7b-v1.3", "medusa") is None, "a repository of another owner may hold another model"
    assert drafter_of("tiny", "medusa") is None


def test_a_folder_is_recognised_by_its_name_the_cache_around_it_or_its_config(tmp_path):
    (tmp_path / "vicuna-7b-v1.3").mkdir()
    assert drafter_of(str(tmp_path / "vicuna-7b-v1.3"), "sps") == "double7/vicuna-68m"
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    assert family_of(str(snapshot)).title == "Qwen3"
    other = tmp_path / "mine"
    other.mkdir()
    assert family_of(str(other)) is families.OTHER
    for content, title in (("not json", ""), ("[]", ""), ('{"_name_or_path": "/data/Llama-2-7b-chat-hf"}', "Llama 2 Chat")):
        (other / "config.json").write_text(content)
        assert family_of(str(other)).title == title


def test_a_familys_template_and_stop_tokens_are_the_default(tmp_path):
    folder = write_target(tmp_path / "vicuna-7b-v1.3")
    options: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "attention": "sdpa"}
    found = targets.load(str(folder), **options)
    assert found.chat.template == "vicuna_v1.1"
    assert targets.load(str(folder), template="chat", **options).chat.template == "chat"
    end = found.tokenizer.eos_token_id
    assert found.stop_ids == {end}, "the family's </s> is no token here"
    config = json.loads((folder / "tokenizer.json").read_text())
    config["added_tokens"][1]["content"] = "</s>"
    (folder / "tokenizer.json").write_text(json.dumps(config))
    tokenizer_config = (folder / "tokenizer_config.json").read_text().replace("<|user|>", "</s>")
    (folder / "tokenizer_config.json").write_text(tokenizer_config)
    again = targets.load(str(folder), **options)
    assert again.stop_ids == {end, again.tokenizer.convert_tokens_to_ids("</s>")}
    assert len(again.stop_ids) == 2
    elsewhere = shutil.copytree(folder, tmp_path / "mine")
    assert targets.load(str(elsewhere), **options).chat.template == "chat"


def test_mistral_v0_1_is_refused_because_of_its_sliding_window(tmp_path):
    folder = write_target(tmp_path / "Mistral-7B-Instruct-v0.1")
    old = json.loads((folder / "config.json").read_text())
    shape = {key: old[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=4096)).float().save_pretrained(folder)
    with pytest.raises(UserError, match=r"'mistral' has sliding_attention layers.*sliding_window null"):
        targets.load(str(folder), device="cpu", dtype="fp32", attention="sdpa")
    assert family_of("mistralai/Mistral-7B-Instruct-v0.1") is families.OTHER


def test_the_targets_command_lists_families_and_their_drafters(capsys, wide_terminal):
    with pytest.raises(SystemExit):
        main(["targets"])
    told = capsys.readouterr().out
    assert "tiny-160m" in told
    rows = {line.split()[0]: line.rstrip().split(maxsplit=2)[1:] for line in told.splitlines() if "/" in line}
    assert rows.keys() == set(families.hub_ids())
    assert rows["lmsys/vicuna-33b-v1.3"] == ["vicuna_v1.1", "medusa, hydra, eagle, sps"]
