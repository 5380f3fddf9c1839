import json

import pytest
import torch
from helpers.small_models import RANK_ACCURACY, SHAPE, small_model, trained
from safetensors.torch import save_file
from transformers import LlamaConfig

from methods import eagle, eagle3, hydra, medusa, s4c
from methods.core import weights
from methods.core.errors import UserError
from specbench.targets import drafters

CODE = {"medusa": medusa, "eagle": eagle, "eagle3": eagle3, "hydra": hydra, "s4c": s4c}


@drafters.with_next_step()
def load(path, kind, config=None):
    return weights.load(path, kind, CODE[kind].Module, CODE[kind].Architecture, config or small_model().config)


def saved(tmp_path, kind, **architecture):
    module = trained(kind, small_model(), **architecture).module
    path = tmp_path / f"{kind}.safetensors"
    weights.save(path, kind, module, module.architecture, RANK_ACCURACY, {"tokens": 7})
    return path, module


def refusal(path, kind, config=None):
    with pytest.raises(UserError) as caught:
        load(path, kind, config)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("medusa", {}),
        ("medusa", {"vocabulary": 40, "output": "target"}),
        ("eagle", {}),
        ("eagle3", {"vocabulary": 40}),
        ("hydra", {"layers": 2}),
        ("s4c", {"heads": "hydra", "prefix": "none", "depth": 3}),
    ],
)
def test_what_is_saved_is_loaded(kind, architecture, tmp_path):
    path, module = saved(tmp_path, kind, **architecture)
    back = load(path, kind)
    assert back.module.architecture == module.architecture
    assert back.rank_accuracy == RANK_ACCURACY
    assert not back.module.training
    assert not any(parameter.requires_grad for parameter in back.module.parameters())
    for name, tensor in module.state_dict().items():
        kept = tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        found = back.module.state_dict()[name]
        assert found.dtype == kept.dtype, name
        assert torch.equal(found, kept), name
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_tells_weights_apart(tmp_path):
    path, module = saved(tmp_path, "medusa")
    first = load(path, "medusa").sha256
    module.heads[0].linear.bias += 1.0
    weights.save(path, "medusa", module, module.architecture, RANK_ACCURACY, {})
    assert load(path, "medusa").sha256 != first


@pytest.mark.parametrize("kind", CODE)
def test_weights_for_another_width_are_refused_naming_both_shapes(kind, tmp_path):
    path, _ = saved(tmp_path, kind)
    message = refusal(path, kind, LlamaConfig(**{**SHAPE, "hidden_size": 48, "num_attention_heads": 4}))
    assert "32" in message
    assert "48" in message
    assert "do not fit the target" in message


def test_another_vocabulary_is_refused_naming_both_shapes(tmp_path):
    path, _ = saved(tmp_path, "medusa")
    message = refusal(path, "medusa", LlamaConfig(**{**SHAPE, "vocab_size": 70}))
    assert "(64, 32)" in message
    assert "(70, 32)" in message


def test_weights_of_another_kind_are_refused(tmp_path):
    path, _ = saved(tmp_path, "medusa")
    assert "are for 'medusa', not 'eagle'" in refusal(path, "eagle")


def test_saved_weights_have_the_mode_of_any_new_file(tmp_path):
    path, _ = saved(tmp_path, "medusa")
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_weights_that_may_not_be_read_are_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "s4c.safetensors"
    path.write_bytes(b"as unreadable as a file of mode 0 is to another user than root")
    monkeypatch.setattr("os.access", lambda file, mode: False)
    assert "may not be read by this user; change its mode (chmod a+r)" in refusal(path, "s4c")


def test_a_missing_file_garbage_and_a_foreign_format_are_refused(tmp_path):
    path = tmp_path / "drafter.safetensors"
    assert "cannot be read" in refusal(path, "s4c")
    path.write_bytes(b"not a safetensors file at all")
    assert "cannot be read" in refusal(path, "s4c")
    path.write_bytes(b"")
    assert "cannot be read" in refusal(path, "s4c")
    save_file({"x": torch.zeros(1)}, path)
    assert weights.FORMAT in refusal(path, "s4c")
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "other", "about": json.dumps({})})
    assert "specbench train s4c" in refusal(path, "s4c")


SOUND = {"kind": "s4c", "architecture": {}, "rank_accuracy": RANK_ACCURACY}


NOT_RANK_ACCURACY: tuple[object, ...] = (None, [], [[]], [0.5, 0.2], [[0.5], []], [["a"]], [[1.5]])


@pytest.mark.parametrize(
    ("about", "what"),
    [
        (None, "kind, architecture, rank_accuracy"),
        ("{not json", "damaged header"),
        ("[]", "damaged header"),
        ({"kind": None}, "(invalid or missing: kind)"),
        ({"architecture": []}, "(invalid or missing: architecture)"),
        ({"architecture": {"haeds": "hydra"}}, "unknown architecture option 'haeds'; did you mean 'heads'"),
        ({"architecture": {"heads": "medusa"}}, "have heads='medusa'"),
        ({"architecture": {"depth": "5"}}, "have depth='5'"),
        ({"architecture": {"depth": 1}}, "depth is 1; choose"),
        *(({"rank_accuracy": rows}, "(invalid or missing: rank_accuracy)") for rows in NOT_RANK_ACCURACY),
    ],
)
def test_a_damaged_header_is_refused_naming_the_file(about, what, tmp_path):
    path = tmp_path / "s4c.safetensors"
    text = json.dumps(SOUND | about) if isinstance(about, dict) else about
    save_file({"x": torch.zeros(1)}, path, metadata={"format": weights.FORMAT} | ({} if text is None else {"about": text}))
    assert what in refusal(path, "s4c")


def test_every_tensor_that_does_not_fit_is_named_with_its_shapes():
    module = trained("eagle", small_model()).module
    tensors = dict(module.state_dict())
    removed = tensors.pop("layer.fc.bias")
    tensors |= {"layer.extra": removed, "layer.fc.weight": torch.zeros(3, 5)}
    with pytest.raises(UserError) as caught:
        weights.fit(module, tensors, "file")
    assert str(caught.value) == (
        "drafter weights file do not fit the target: layer.extra (32,) is unexpected; layer.fc.bias (32,) is missing; "
        "layer.fc.weight is (3, 5), the target needs (32, 64); use weights trained for this target"
    )


def test_tensors_are_named_as_in_the_file():
    module, named = trained("medusa", small_model()).module, "file.{}".format
    tensors = {named(name): tensor + 1 for name, tensor in module.state_dict().items()}
    weights.fit(module, tensors, "file", named)
    assert torch.equal(module.heads[2].out.weight, tensors["file.heads.2.out.weight"])
    tensors.pop("file.heads.2.out.weight")
    with pytest.raises(UserError, match=r"file do not fit the target: file\.heads\.2\.out\.weight \(64, 32\) is missing"):
        weights.fit(module, tensors, "file", named)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_rotary_frequencies_stay_as_exact_as_a_targets(kind):
    module = weights.settled(trained(kind, small_model()).module.float(), torch.device("cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    frequencies = [buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq")]
    assert frequencies
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}
