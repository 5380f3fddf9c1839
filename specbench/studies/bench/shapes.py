"""Random-weight targets and drafters of the shape whose rounds were measured with the methods' reference code.

Random drafters are accepted next to nothing, so that a round shows what a method costs and nothing of what it gains.
"""

import importlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from methods import registry
from methods.core.target import Target
from methods.core.weights import Trained
from specbench.engines.own import Arm
from specbench.studies.bench.rounds import Subject

SUBJECTS = (
    Subject("Medusa, 64 nodes", "medusa:nodes=63", 6, 17.0),
    Subject("EAGLE-2, 60 nodes", "eagle2:nodes=59,depth=5,width=10", 6, 31.7),
    Subject("EAGLE-2, 60 nodes", "eagle2:nodes=59,depth=5,width=10", 8, 31.7),
)
# Of Medusa's heads; all it decides is the tree, whose 63 likeliest drafts are four deep.
RANK_ACCURACY = ((0.6, 0.15, 0.08, 0.05, 0.03, 0.02, 0.015, 0.01, 0.008, 0.006),) * 4


def random_model(layers: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """384 wide, 12.2 M parameters with 6 layers; the same weights in every dtype."""
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.to(device, dtype)
    return model.eval().requires_grad_(False)


def random_arm(name: str, target: Target) -> Arm:
    """A method of the table with random weights, the same in every dtype and on every back end."""
    resolved = registry.resolve(name, {}, target.device.type)
    code = importlib.import_module(resolved.method.module)
    torch.manual_seed(1)
    module = code.Module(target.config, code.Architecture()).to(target.device, target.dtype).eval().requires_grad_(False)
    return Arm(name, target, *registry.build(resolved, target, Trained(module, RANK_ACCURACY, sha256="")))
