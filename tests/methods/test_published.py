"""Drafters in published layouts, loaded as a user loads them: chosen, read, checked, and compared with a reference."""

from dataclasses import replace

import pytest
import torch
from helpers.published_drafters import LAYOUTS, REFERENCE, tensors_of, write
from helpers.small_models import CAPACITY, PROMPT, Beside, Oracle, features_of, run, watch_policy
from helpers.tiny_target import write_target
from safetensors.torch import save_file

from methods import eagle, medusa, registry
from methods.core.errors import UserError
from methods.core.target import Target
from methods.registry import resolve
from specbench import targets
from specbench.targets import drafters, families

METHODS_OF = {"medusa": ("medusa",), "eagle": ("eagle", "eagle2")}
CASES = [(layout, name) for layout, (kind, *_) in LAYOUTS.items() for name in METHODS_OF[kind]]
OPTIONS = {"medusa": {"nodes": "20"}, "eagle": {"nodes": "20"}, "eagle2": {"nodes": "12", "depth": "4", "width": "3"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target") / "target")


@pytest.fixture(scope="module")
def model(folder):
    return loaded(folder).model


def loaded(folder, name=None, **files):
    return targets.load(str(name or folder), device="cpu", dtype="fp64", attention="sdpa", drafter_files=files)


def greedy(model, new):
    return model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=new, eos_token_id=None)[0].tolist()


def drafter_of(folder, kind, source):
    return loaded(folder, **{kind: source}).drafter_for(resolve(kind, {}, "cpu"))


def refusal(folder, kind, source):
    with pytest.raises(UserError) as caught:
        drafter_of(folder, kind, source)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_a_published_layout_drafts_losslessly_what_its_tensors_say(layout, name, form, folder, model, tmp_path, exact_math):
    kind = LAYOUTS[layout][0]
    tensors = tensors_of(layout, model)
    write(tmp_path / "drafter", layout, tensors, form)
    target, resolved = loaded(folder, **{kind: tmp_path / "drafter"}), resolve(name, OPTIONS[name], "cpu")
    ready = Target(target.model, capacity=CAPACITY)
    drafter, accept = registry.build(resolved, ready, target.drafter_for(resolved))
    text = greedy(target.model, 24)
    assert run(ready, drafter, PROMPT, 20, accept).tokens == text[len(PROMPT) :][:20]

    watched = watch_policy(drafter)
    wide, checked = {each: tensor.double() for each, tensor in tensors.items()}, []

    def check(tokens, tree):
        features_TD = features_of(target.model, tokens[:-1])
        for path, logits_V in watched.logits.items():
            expected_V = REFERENCE[kind](layout, wide, target.model, tokens, features_TD, path)
            torch.testing.assert_close(logits_V, expected_V, rtol=1e-4, atol=1e-3)  # transformers turns by angles in fp32
            checked.append(len(path))

    run(ready, Beside(Oracle(text, (2, 0, 3, 1)), [drafter], check), PROMPT, 10)
    assert max(checked) == watched.depth - 1 >= 2


def test_an_embedding_is_the_targets_or_kept(folder, model, tmp_path):
    for layout, own in (("eagle", False), ("eagle-linear-rope", False), ("eagle-own-embedding", True)):
        write(tmp_path / layout, layout, tensors_of(layout, model))
        assert (drafter_of(folder, "eagle", tmp_path / layout).module.layer.embed_tokens is not None) == own


@pytest.mark.parametrize("kind", METHODS_OF)
def test_every_tensor_that_does_not_fit_is_named(kind, folder, model, tmp_path):
    tensors = tensors_of(kind, model)
    gone, wrong = ("2.0.linear.bias", "1.1.weight") if kind == "medusa" else ("fc.bias", "layers.0.mlp.up_proj.weight")
    needs = tuple(tensors[wrong].shape)
    del tensors[gone]
    write(tmp_path, kind, tensors | {wrong: torch.zeros(2, 5), "norm.weight": torch.zeros(7)})
    expected = sorted([f"{gone} (32,) is missing", "norm.weight (7,) is unexpected", f"{wrong} is (2, 5), the target needs {needs}"])
    assert f"drafter weights {tmp_path} do not fit the target: {'; '.join(expected)}; " in refusal(folder, kind, tmp_path)


class Runs:
    def __reduce__(self):
        return open, ("ran", "w")


def test_weights_that_are_more_than_tensors_or_damaged_are_refused(folder, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "medusa", tensors_of("medusa", model), "pt")
    whole = path.read_bytes()
    torch.save({"0.0.linear.bias": Runs()}, path)
    assert "its pickle asks for" in refusal(folder, "medusa", tmp_path)
    assert not (tmp_path / "ran").exists()
    for damaged in (whole[: len(whole) // 2], b"not a pickle at all", b""):
        path.write_bytes(damaged)
        assert f"drafter weights {path} cannot be read" in refusal(folder, "medusa", tmp_path)
    torch.save([1, 2], path)
    assert "are not a mapping of names to tensors" in refusal(folder, "medusa", path)
    path.unlink()
    assert "has none of model*.safetensors, " in refusal(folder, "medusa", tmp_path)


@pytest.mark.parametrize(
    ("layout", "config", "message"),
    [
        ("medusa", {"medusa_num_heads": "four"}, "has medusa_num_heads='four'; it must be 1 to 5"),
        ("medusa", {"medusa_num_heads": 5}, "4.1.weight (259, 32) is missing"),
        ("eagle", {"num_hidden_layers": 2}, "has num_hidden_layers=2; it must be 1 to 1"),
        ("eagle", {"hidden_act": "gelu"}, "has hidden_act='gelu'; drafters with silu are supported"),
        ("eagle", {"intermediate_size": None}, "has no intermediate_size"),
        ("eagle", {"num_attention_heads": 0}, "describes no layer"),
        ("eagle", {"num_attention_heads": "many"}, "describes no layer"),
        ("eagle", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "has dynamic rotary factors"),
        ("eagle", {"head_dim": 16}, "layers.0.self_attn.k_proj.weight is (32, 32), the target needs (64, 32)"),
    ],
)
def test_a_config_that_is_not_the_files_is_refused(layout, config, message, folder, model, tmp_path):
    write(tmp_path, layout, tensors_of(layout, model), **config)
    assert message in refusal(folder, layout, tmp_path)


@pytest.mark.parametrize("config", [{"rope_theta": "a"}, {"num_key_value_heads": 0}, {"head_dim": -8}, {"intermediate_size": -1}])
def test_a_config_no_layer_can_be_built_of_is_one_line(config, folder, model, tmp_path):
    write(tmp_path, "eagle", tensors_of("eagle", model), **config)
    assert "eagle drafter" in refusal(folder, "eagle", tmp_path)


def test_a_config_is_needed_and_is_json(folder, model, tmp_path):
    path = write(tmp_path, "eagle", tensors_of("eagle", model), "pt")
    for text, message in (("{", "config.json cannot be read"), ("[]", "config.json is not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        assert message in refusal(folder, "eagle", tmp_path)
    (tmp_path / "config.json").unlink()
    assert "has no config.json in" in refusal(folder, "eagle", path)


def test_weights_in_shards_are_read_together_and_never_twice(folder, model, tmp_path):
    tensors = list(tensors_of("eagle", model).items())
    write(tmp_path, "eagle", dict(tensors[:3])).rename(tmp_path / "model-00001-of-00002.safetensors")
    save_file(dict(tensors[3:]), tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"other weights, never looked at")
    both = drafter_of(folder, "eagle", tmp_path)
    write(tmp_path / "one", "eagle", dict(tensors))
    one = drafter_of(folder, "eagle", tmp_path / "one")
    assert all(torch.equal(*pair) for pair in zip(both.module.state_dict().values(), one.module.state_dict().values(), strict=True))
    assert both.sha256 != one.sha256
    save_file(dict(tensors[:1]), tmp_path / "model-00002-of-00002.safetensors")
    assert f"hold {tensors[0][0]} in more than one file" in refusal(folder, "eagle", tmp_path)


def test_trees_are_the_published_ones_best_drafts_first(folder, model, tmp_path):
    write(tmp_path / "medusa", "medusa", tensors_of("medusa", model))
    write(tmp_path / "heads", "medusa-2-blocks", tensors_of("medusa-2-blocks", model))
    write(tmp_path / "eagle", "eagle", tensors_of("eagle", model))
    trees = {name: drafter_of(folder, "medusa" if name != "eagle" else name, tmp_path / name) for name in ("medusa", "heads", "eagle")}
    assert trees["medusa"].rank_accuracy == ()
    assert [trees[name].static_tree(63).size - 1 for name in trees] == [63, 61, 25]
    assert [trees[name].static_tree(63).depth for name in trees] == [4, 3, 5]
    assert trees["medusa"].choices(5) == ((0,), (0, 0), (1,), (0, 1), (2,))
    assert trees["eagle"].choices(7) == ((0,), (1,), (0, 0), (2,), (0, 1), (1, 0), (0, 0, 0))
    for template in (medusa.TEMPLATE, eagle.TEMPLATE):
        for nodes in range(1, len(template) + 1):
            assert all(not choice[:-1] or choice[:-1] in template[:nodes] for choice in template[:nodes])


def test_whose_drafter_an_arm_gets(folder, model, tmp_path, monkeypatch):
    """The first of these that is given is used: the arm's own, the kind's, the target folder's, the table's."""
    arm, target = (
        resolve("eagle2", {"nodes": "4"}, "cpu", arm="eagle2:nodes=4"),
        loaded(folder, **{"eagle2:nodes=4": "a/b", "eagle": "c/d"}),
    )
    assert drafters.locate(target, arm) == "a/b"
    assert drafters.locate(target, resolve("eagle", {}, "cpu")) == "c/d"
    assert drafters.locate(target, resolve("pld", {}, "cpu")) is None
    monkeypatch.setattr(families, "drafter_of", lambda name, kind: f"{name}'s {kind}")
    plain = loaded(folder)
    assert drafters.locate(plain, arm) == f"{folder}'s eagle"
    beside = folder / "drafters" / "eagle.safetensors"
    beside.parent.mkdir()
    beside.write_bytes(b"")
    assert drafters.locate(plain, arm) == str(beside)
    beside.unlink()


def test_a_drafter_tells_where_it_is_from_and_methods_share_it(folder, model, tmp_path):
    path = write(tmp_path, "eagle", tensors_of("eagle", model))
    target = loaded(folder, eagle=tmp_path)
    drafter = target.drafter_for(resolve("eagle", {}, "cpu"))
    assert (drafter.source, len(drafter.sha256)) == (str(tmp_path), 64)
    assert target.drafter_for(resolve("eagle2", {}, "cpu")) is drafter
    assert drafter_of(folder, "eagle", path).sha256 == drafter.sha256
    assert drafter.module.layer.fc.weight.dtype == torch.float64
    shipped = targets.load("tiny", device="cpu", dtype="bf16", attention="sdpa").drafter_for(resolve("eagle", {}, "cpu"))
    assert shipped is not None
    assert shipped.source == "drafters/eagle.safetensors"


@pytest.mark.parametrize(("base", "warned"), [("someone/target", False), ("lmsys/vicuna-7b-v1.3", True), (None, False)])
def test_a_drafter_that_names_another_target_is_warned_of(base, warned, folder, model, tmp_path, capsys):
    write(tmp_path, "medusa", tensors_of("medusa", model), base_model_name_or_path=base)
    drafter_of(folder, "medusa", tmp_path)
    told = capsys.readouterr().err.strip()
    assert told == (f"warning: medusa drafter {tmp_path} says it is for {base!r}, and the target is {folder}" if warned else "")


def test_cost_matched_targets_and_methods_nobody_published_for_are_refused(folder, model, tmp_path):
    write(tmp_path, "medusa", tensors_of("medusa", model))
    matched = replace(loaded(folder, medusa=tmp_path), name="tiny-160m", small=model)
    with pytest.raises(UserError, match=r"tiny-160m is cost-matched: .* run that one, --target FOLDER or HUB_ID$"):
        matched.drafter_for(resolve("medusa", {}, "cpu"))
    assert "no published layout of s4c is known" in refusal(folder, "s4c", tmp_path)
    assert "nobody/nothing is not whole in the local cache" in refusal(folder, "medusa", "nobody/nothing")
