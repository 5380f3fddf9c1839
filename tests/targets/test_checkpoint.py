"""Checkpoints as they are published: shards and pickles, broken ones, and ones that would run code."""

import hashlib
import json
import os
import shutil
from typing import Any

import pytest
import torch
from helpers.tiny_target import write_target
from safetensors.torch import load_file, save_file

from methods.core.errors import UserError
from specbench import targets
from specbench.targets import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target"))


def loaded(folder):
    return targets.load(str(folder), device="cpu", dtype="fp32", attention="sdpa")


def sharded(folder, place, suffix, write):
    """Return a copy of the checkpoint with its weights in two shards and their index."""
    other = shutil.copytree(folder, place)
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(tensors)
    shards = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        write({name: tensors[name].clone() for name in held}, other / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (other / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return other


def as_safetensors(tensors, path):
    save_file(tensors, path, metadata={"format": "pt"})


KINDS = {"safetensors": as_safetensors, "bin": torch.save}


@pytest.mark.parametrize("suffix", KINDS)
def test_shards_give_the_same_model_and_a_hash_of_all(folder, tmp_path, suffix):
    other = sharded(folder, tmp_path / "other", suffix, KINDS[suffix])
    found = loaded(other)
    for name, tensor in loaded(folder).model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    parts = sorted(other.glob(f"*-of-00002.{suffix}"))
    assert found.weights_sha256 == hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()


def test_a_pickle_is_read_where_there_are_no_safetensors(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    assert checkpoint.weight_files(other) == [other / "model.safetensors"]
    assert loaded(other).weights_sha256 == loaded(folder).weights_sha256
    (other / "model.safetensors").unlink()
    save_file({"x": torch.ones(1)}, other / "adapter.safetensors")
    assert checkpoint.weight_files(other) == [other / "pytorch_model.bin"]
    found = loaded(other)
    assert found.weights_sha256 == hashlib.sha256((other / "pytorch_model.bin").read_bytes()).hexdigest()


class Evil:
    trace = ""

    def __reduce__(self):
        return os.mkdir, (Evil.trace,)


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path):
    Evil.trace = str(tmp_path / "trace")

    def poisoned(tensors, path):
        torch.save(tensors | {"evil": Evil()}, path)

    with pytest.raises(UserError, match="cannot be loaded") as caught:
        loaded(sharded(folder, tmp_path / "other", "bin", poisoned))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", KINDS)
def test_the_error_names_a_missing_shard(folder, tmp_path, suffix):
    other = sharded(folder, tmp_path / "other", suffix, KINDS[suffix])
    lost = next(other.glob(f"*-00002-of-00002.{suffix}"))
    lost.unlink()
    with pytest.raises(UserError, match=f"cannot be loaded .*lists '{lost.name}', which is not there"):
        loaded(other)


def test_an_index_cannot_name_files_outside_its_folder(folder, tmp_path):
    other = sharded(folder, tmp_path / "other", "safetensors", as_safetensors)
    index = other / "model.safetensors.index.json"
    shutil.move(next(other.glob("*-00002-of-00002.*")), tmp_path / "outside.safetensors")
    index.write_text(index.read_text().replace("model-00002-of-00002.safetensors", "../outside.safetensors"))
    with pytest.raises(UserError, match=r"lists '\.\./outside\.safetensors'"):
        loaded(other)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"x": [1]}}', '{"weight_map": {"x": 1}}']
)
def test_a_broken_index_is_refused_in_one_line(folder, tmp_path, content):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "model.safetensors").unlink()
    (other / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json (is no index of shards|lists)"):
        loaded(other)


@pytest.mark.parametrize(
    "edit",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1001},
        {"num_hidden_layers": int("9" * 4000)},
        {"model_type": "llava", "text_config": {"model_type": "qwen2", "num_hidden_layers": 10**9}},
    ],
    ids=["a billion", "one too many", "digits", "in a part"],
)
def test_a_config_of_too_many_layers_is_refused_before_anything_is_built(folder, tmp_path, monkeypatch, edit):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | edit))
    monkeypatch.setattr(checkpoint.AutoConfig, "from_pretrained", lambda *given, **more: pytest.fail("something was built"))
    with pytest.raises(UserError, match=r"^target has (1000000000|1001|9+…) layers by its config.json; at most 1,000 are supported"):
        loaded(other)


def test_hashing_weights_never_reads_a_file_whole(folder, monkeypatch):
    monkeypatch.setattr(type(folder), "read_bytes", lambda path: pytest.fail(f"{path} read whole"))
    assert len(checkpoint.sha256(folder)) == 64


def test_a_config_that_names_its_own_weight_file_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter.safetensors"}))
    save_file(load_file(other / "model.safetensors"), other / "adapter.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="names a weight file of its own"):
        loaded(other)


def test_code_in_a_checkpoint_is_never_run(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    trace = tmp_path / "trace"
    config = json.loads((other / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (other / "config.json").write_text(json.dumps(config | own))
    (other / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    with pytest.raises(UserError, match=r"cannot be loaded|not supported"):
        loaded(other)
    assert not trace.exists()


def test_the_error_for_a_sentencepiece_model_names_the_packages_to_install(folder, tmp_path, monkeypatch):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "tokenizer.json").rename(other / "tokenizer.model")
    monkeypatch.setattr(checkpoint, "is_sentencepiece_available", lambda: False)
    with pytest.raises(UserError, match=r"takes two more packages to read; install them with: pip install 'specbench\[sentencepiece\]'"):
        loaded(other)


WRONG: tuple[Any, ...] = (None, 3, -1, 0.5, "x", "", [], ["x"], [[1]], {}, {"x": 1}, True)
CONFIGS = {
    "config.json": ("rope_theta", "rope_scaling", "architectures", "dtype", "hidden_act", "tie_word_embeddings", "eos_token_id"),
    "tokenizer_config.json": ("added_tokens_decoder", "chat_template", "eos_token", "tokenizer_class", "legacy", "model_max_length"),
    "generation_config.json": ("eos_token_id", "use_cache", "penalty_alpha", "cache_implementation", "max_length"),
}


@pytest.mark.parametrize("file", CONFIGS)
def test_wrong_values_in_a_checkpoints_configuration_are_taken_or_refused_in_one_line(file, folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "target")
    stored = json.loads((place / file).read_text()) if (place / file).is_file() else {}
    whole = [*({**stored, key: wrong} for key in CONFIGS[file] for wrong in WRONG), *WRONG]
    said = []
    for edited in whole:
        (place / file).write_text(json.dumps(edited))
        try:
            loaded(place)
        except UserError as error:
            said.append(str(error))
    assert 0 < len(said) < len(whole)
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize("error", [ImportError("GPTQ needs optimum"), AttributeError("no such thing"), Exception("newer tokenizers")])
def test_any_exception_of_a_loader_is_one_line(error, folder, monkeypatch):
    def failing(*given, **options):
        raise error

    monkeypatch.setattr(checkpoint.AutoTokenizer, "from_pretrained", failing)
    with pytest.raises(UserError, match=f"^target folder .* cannot be loaded .{error}.; it must be a whole transformers checkpoint$"):
        loaded(folder)
