"""The target's features: the inputs of the layers asked for, and the cache of them on disk."""

import copy
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from helpers.small_models import small_model

from methods.core.errors import UserError
from specbench.train import features
from specbench.train.data.texts import Tokens, Windows
from specbench.train.distributed import SINGLE_PROCESS, World
from specbench.util.terminal import Console

QUIET = Console(quiet=True)
READS = (0, 1)


def windows(count=7, seq=12):
    tokens_T = np.random.default_rng(0).integers(0, 64, count * seq + 2, np.uint16)
    return Windows(Tokens(tokens_T, np.ones(len(tokens_T), bool)), seq)


def model():
    return copy.deepcopy(small_model()).float()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_deep_features_are_the_inputs_of_the_layers(family):
    target, tokens_BT = copy.deepcopy(small_model(family)).float(), windows().tokens(np.arange(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = target.base_model(input_ids=tokens_BT, output_hidden_states=True)
    found = features.compute(target, READS, tokens_BT)
    assert torch.equal(found.last_BTD, out.last_hidden_state)
    assert found.deep_BTD is not None
    assert torch.equal(found.deep_BTD, torch.cat(out.hidden_states[:2], dim=-1))
    only = features.compute(target, (1,), tokens_BT)
    assert only.deep_BTD is not None
    assert torch.equal(only.deep_BTD, out.hidden_states[1])
    assert features.compute(target, (), tokens_BT).deep_BTD is None
    assert not any(layer._forward_pre_hooks for layer in target.model.layers)


def cache(folder, reads=READS, count=5):
    return features.FeatureCache(folder / "features", windows(), count, small_model().config, reads)


@pytest.mark.parametrize("reads", [(), READS])
def test_cached_features_equal_the_computed_ones_in_bf16(reads, tmp_path):
    made = cache(tmp_path, reads)
    features.reserve_disk([made], QUIET)
    made.fill(model(), 2, SINGLE_PROCESS, QUIET)
    for numbers_B in (np.array([0, 1]), np.array([2, 3])):
        computed, stored = features.compute(model(), reads, windows().tokens(numbers_B)), made.at(numbers_B)
        assert torch.equal(stored.last_BTD, computed.last_BTD.bfloat16().float())
        assert (stored.deep_BTD is None) == (not reads)
        if reads:
            assert stored.deep_BTD is not None
            assert computed.deep_BTD is not None
            assert torch.equal(stored.deep_BTD, computed.deep_BTD.bfloat16().float())
    assert os.path.getsize(made.path) == made.bytes == 5 * 12 * 32 * (1 + len(reads)) * 2


def test_an_interrupted_cache_is_completed_by_several_processes(tmp_path, monkeypatch):
    compute = features.compute
    computed: list[int] = []

    def noted(target, reads, tokens_BT):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(windows().tokens(np.arange(5)).tolist().index(tokens_BT[0].tolist()))
        return compute(target, reads, tokens_BT)

    made = cache(tmp_path)
    made.allocate()
    monkeypatch.setattr(World, "wait", lambda self: None)
    with monkeypatch.context() as patch:
        patch.setattr(features, "compute", noted)
        with pytest.raises(KeyboardInterrupt):
            made.fill(model(), 1, SINGLE_PROCESS, QUIET)
        shares = []
        for rank in range(2):
            computed.clear()
            cache(tmp_path).fill(model(), 1, World(rank, 2), QUIET)
            shares.append(list(computed))
    assert shares == [[2, 4], [3]]
    again = cache(tmp_path)
    again.fill(None, 1, SINGLE_PROCESS, QUIET)  # nothing is missing
    for number in range(5):
        expected = compute(model(), READS, windows().tokens(np.array([number]))).last_BTD.bfloat16().float()
        assert torch.equal(again.at(np.array([number])).last_BTD, expected)


def test_a_cache_larger_than_the_disk_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    made = cache(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(made.bytes - 1))
    with pytest.raises(UserError, match=r"the features take 0\.0 GiB more in .*; choose another --work, fewer --tokens, or leave"):
        features.reserve_disk([made], QUIET)
    assert not made.path.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(made.bytes))
    features.reserve_disk([made], QUIET)
    assert made.missing_bytes == 0
    assert cache(tmp_path, count=7).missing_bytes == 2 * made.bytes // 5
