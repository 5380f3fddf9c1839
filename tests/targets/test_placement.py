"""A target spread over devices: the device of each layer, and the layer stack and cache that follow it.

One CPU under two names stands in for several devices.
"""

import copy
import json
from collections import Counter

import pytest
import torch
from helpers.small_models import CPU, PROMPT, SHAPE, Oracle, greedy_text, run, small_model, small_target
from helpers.tiny_target import write_suite, write_target
from torch import nn
from transformers import LlamaConfig

from methods.core.backend import EAGER, backend
from methods.core.errors import UserError
from methods.core.kv_cache import KVCache
from methods.core.stack import moves
from methods.core.target import Target
from specbench.cli.app import main
from specbench.store.manifest import RunManifest
from specbench.targets import placement

OTHER = torch.device("cpu", 0)  # the same processor under another name


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_hidden_states_move_only_where_the_device_changes():
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    assert moves([first] * 4, first) == {}
    assert moves([first, first, second, second], first) == {2: second}
    assert moves([second, second, first], first) == {0: second, 2: first}


def test_a_cache_of_several_buffers_equals_one_of_a_single_buffer():
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 4})
    caches = [
        KVCache(config, 10, dtype=torch.float64, device=CPU),
        KVCache(config, 10, dtype=torch.float64, device=CPU, spread=[CPU, OTHER, OTHER, CPU]),
    ]
    whole, spread = caches
    assert (len(whole.buffers), len(spread.buffers)) == (1, 2)
    assert whole.capacity == spread.capacity
    for cache in caches:
        for layer, (keys, values) in enumerate(cache.layers):
            rows = torch.arange(8.0, dtype=torch.float64)[:, None]
            keys[:, :, :8], values[:, :, :8] = rows + 100 * layer, -rows - 100 * layer
        cache.truncate(3)
        cache.commit(torch.tensor([0, 2, 4, 4]), torch.tensor(3))
        assert int(cache.length) == 6
    for one, other in zip(whole.layers, spread.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    spread.wipe()
    assert not any(view.any() for layer in spread.layers for view in layer)


def test_a_stack_that_moves_hidden_states_decodes_the_same(monkeypatch):
    target = small_target()
    moved = []

    def noted(device, hidden, mask, turned, places_N):
        moved.append((device, None if mask is None else mask.shape))
        return hidden, mask, turned, places_N

    monkeypatch.setattr("methods.core.stack._moved", noted)
    target.stack._moves = {1: OTHER}
    result = run(target, Oracle(greedy_text(), (3, 1)), PROMPT, 20)
    assert [*PROMPT, *result.tokens] == greedy_text()[: len(PROMPT) + 20]
    assert len(moved) == 1 + len(result.steps), "once a forward pass: the prefill and each step"
    assert {device for device, _ in moved} == {OTHER}


def test_a_spread_target_needs_the_eager_back_end(monkeypatch):
    monkeypatch.setattr("methods.core.stack.moves", lambda places, home: {1: OTHER})
    model = copy.deepcopy(small_model())
    Target(model, capacity=64, backend=EAGER)
    monkeypatch.setattr(KVCache, "__init__", _two_buffers(KVCache.__init__))
    with pytest.raises(AssertionError, match="only the eager back end"):
        Target(model, capacity=64, backend=backend("static", CPU))


def _two_buffers(init):
    def made(self, config, capacity, *, dtype, device, spread=()):
        init(self, config, capacity, dtype=dtype, device=device, spread=[CPU, OTHER])

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target"))


def config(layers=4):
    return LlamaConfig(**SHAPE | {"num_hidden_layers": layers})


def read(path, stored, home="cuda:0", layers=4):
    path.write_text(json.dumps(stored))
    return placement.read_map(path, layers, home)


def test_a_map_file_gives_the_device_of_each_layer(tmp_path, monkeypatch):
    gpus(monkeypatch, 2)
    assert read(tmp_path / "map.json", {"0-2": "cuda", "3": "cuda:1"}) == ["cuda:0"] * 3 + ["cuda:1"]
    assert read(tmp_path / "map.json", {"3": "cuda:0", "0": "cuda:1", "1-2": "cuda:0"}) == ["cuda:1"] + ["cuda:0"] * 3


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"0-2": "cuda:0"}, "must name each of the target's 4 layers once: 0 to 3"),
        ({"0-3": "cuda:0", "2": "cuda:1"}, "must name each of the target's 4 layers once"),
        ({"0-4": "cuda:0"}, "must name each of the target's 4 layers once"),
        ({"0-2": "cuda:0", "3": "cuda:2"}, "a layer on cuda:2; torch sees 2 CUDA devices"),
        ({"0-2": "cuda:0", "3": "cpu"}, "a layer on cpu, the run is on cuda:0; a target is spread over devices of one kind"),
        ({"0-999999999999999": "cuda:0"}, "must name each of the target's 4 layers once"),
        ({"0-3": "cuda:0", "7": "cuda:0"}, "must name each of the target's 4 layers once"),
        ({"0-3": "cuda:0", "9" * 4000: "cuda:0"}, "must name each of the target's 4 layers once"),
        ({"0-3": "cuda:0", "x" * 2**20: "cuda:0"}, "larger than 1,048,576 bytes"),
        ({"0-3": "gpu"}, "cannot be read .*gpu"),
        ({"0-3": 1.5}, "cannot be read"),
        ({"all": "cuda:0"}, "'all' is neither a layer nor a range of layers"),
        ([1], "cannot be read"),
    ],
)
def test_a_bad_map_file_is_refused_in_one_line(tmp_path, monkeypatch, stored, message):
    gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "map.json", stored)
    assert "\n" not in str(caught.value)


def test_a_device_map_needs_accelerate(monkeypatch):
    monkeypatch.setattr(placement, "is_accelerate_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'specbench\[accelerate\]'"):
        placement.device_map("auto", config(), torch.float32, "cuda")


def layers_of(count, width=64):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(width, width, bias=False)

    with torch.device("meta"):
        return nn.ModuleList(Layer() for _ in range(count))


@pytest.mark.parametrize(("room", "apart"), [([20, 20], 1), ([20, 20, 20], 1), ([4, 20], 6)])
def test_layers_are_spread_evenly_and_in_order(room, apart):
    pytest.importorskip("accelerate")
    layers = layers_of(10)
    size = 64 * 64 * 2
    found = placement.spread_layers(layers, {i: units * size for i, units in enumerate(room)}, torch.bfloat16)
    assert found == sorted(found)
    counts = Counter(found)
    assert sum(counts.values()) == 10
    assert all(counts[i] <= units for i, units in enumerate(room))
    assert len(counts) == len(room)
    assert max(counts.values()) - min(counts.values()) <= apart


def test_a_target_too_large_for_all_gpus_is_refused():
    pytest.importorskip("accelerate")
    with pytest.raises(UserError, match="choose a smaller --target or --dtype"):
        placement.spread_layers(layers_of(10), {0: 3 * 8192, 1: 4 * 8192}, torch.bfloat16)


def test_hooks_of_accelerate_are_removed():
    accelerate = pytest.importorskip("accelerate")
    model = copy.deepcopy(small_model())
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert any(hasattr(part, "_hf_hook") for part in model.modules())
    placement.remove_hooks(model)
    assert not any(hasattr(part, "_hf_hook") for part in model.modules())
    result = run(Target(model, capacity=64), Oracle(greedy_text(), (3, 1)), PROMPT, 20)
    assert [*PROMPT, *result.tokens] == greedy_text()[: len(PROMPT) + 20]


def arguments(folder, tmp_path, *more):
    suite = write_suite(tmp_path / "suite.jsonl", [("a", "talks", ["Say a."])])
    asked = ["run", "--target", str(folder), "--method", "pld", "--suite-file", str(suite), "--max-new-tokens", "8"]
    return [*asked, "--dtype", "fp32", "--device", "cpu", *more]


def test_a_map_with_every_layer_on_the_cpu_changes_no_token(folder, tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "map.json").write_text('{"0-1": "cpu"}')
    found = {}
    for name, more in {"whole": ["--backend", "eager"], "mapped": ["--device-map", str(tmp_path / "map.json")]}.items():
        with pytest.raises(SystemExit) as stop:
            main([*arguments(folder, tmp_path, *more), "--out", str(tmp_path / name)])
        assert not stop.value.code
        found[name] = [json.loads(line)["output_ids"] for line in (tmp_path / name / "records.jsonl").read_text().splitlines()]
    assert found["whole"] == found["mapped"]
    settings = RunManifest.read(tmp_path / "mapped").settings
    assert (settings.device_map, settings.backend) == (str(tmp_path / "map.json"), "eager")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backend", "static"], "--device-map needs the back end eager in every arm"),
        (["--method", "vanilla:backend=static"], "--device-map needs the back end eager in every arm"),
        ([], "--device-map"),
    ],
)
def test_a_device_map_with_unsuitable_options_is_refused_in_one_line(folder, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        main([*arguments(folder, tmp_path, "--device-map", "auto", *more), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
