"""The keys of published drafters' configs: what is honoured, has no effect, or is refused.

Every key of a ``config.json`` has to be in a list of its layout. One that is in none could change
what the drafter computes, and low acceptance would look like the method's: it is refused. The lists
cover the configs of the EAGLE repository, SpecForge, ModelOpt, AngelSlim, speculators (which vLLM
reads), Medusa and Hydra. Keys that are null count as absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from methods.core.errors import UserError

CONFIG = "config.json"
LONGEST = 80  # characters of a value in a message


@dataclass(frozen=True)
class Keys:
    """All keys of a config, or of a part of one.

    ``honoured`` are read, ``idle`` do not change what is drafted here. ``only`` are keys whose effect
    is not implemented, with the values under which they have none.
    """

    honoured: frozenset[str]
    idle: frozenset[str] = frozenset()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def check(self, config: Mapping[str, Any], source: str, part: str = "") -> None:
        """Raise UserError for the first key that is unknown or has an effect that is not implemented.

        ``part`` is the key under which the config stands in the drafter's.
        """
        where = f"{CONFIG} of drafter {source}" + (f", {part}," if part else "")
        for key, value in config.items():
            if value is None or key in self.honoured or value in self.only.get(key, ()):
                continue
            text = repr(value)
            given = f"{key if key.isidentifier() else repr(key)}={text if len(text) <= LONGEST else text[:LONGEST] + '...'}"
            if key in self.only:
                supported = (
                    f"drafters with {' or '.join(map(str, self.only[key]))} are" if self.only[key] else "only drafters without it are"
                )
                raise UserError(f"{where} has {given}; {supported} supported")
            if key not in self.idle:
                advice = f"remove it from {CONFIG} if it does not change what the drafter computes"
                raise UserError(f"{where} has {given}, a key that is not known here; {advice}")


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that transformers writes into every config, or that concern training and generation alone.
# Tensors decide whether an embedding or output matrix is shared (tie_word_embeddings) and how large
# vocabularies are, and every layout here has one architecture, whatever its config calls it.
COMMON = _named("""
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids base_model_name_or_path begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing has_no_defaults_at_init id2label initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length model_type name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16
    use_cache use_return_dict vocab_size
""")

# Keys of a decoder layer's shape that are passed to its config.
SHAPE = (
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
)
LAYER = Keys(
    honoured=frozenset({*SHAPE, "num_hidden_layers", "attention_bias", "qkv_bias", "mlp_bias"}) - {"hidden_act"},
    # A window is used only where use_sliding_window says so; norms of queries and keys are known by their tensors.
    idle=COMMON | {"max_sequence_length", "max_window_layers", "sliding_window", "use_qk_norm"},
    only={
        "hidden_act": ("silu",),
        "hidden_activation": ("silu",),
        "is_causal": (True,),
        "logit_scale": (1.0,),
        "partial_rotary_factor": (1.0,),
        "quantization_config": (),
        "use_mrope": (False,),
        "use_sliding_window": (False,),
    },
)

EAGLE = Keys(LAYER.honoured | {"bias"}, LAYER.idle | {"hidden_size"}, LAYER.only)

TRAINING = frozenset({"embed_requires_grad", "enable_sp_ulysses", "length", "ttt_length", "ttt_steps"})
NORMS = {"fc_norm": (False,), "norm_before_fc": (False,), "norm_output": (False,)}  # norms of later versions of EAGLE-3
AUX = frozenset({"eagle_aux_hidden_state_layer_ids", "use_aux_hidden_state"})
EAGLE3 = Keys(
    LAYER.honoured
    | AUX
    | {"bias", "draft_vocab_size", "eagle_config", "hidden_size", "norm_before_residual", "num_aux_hidden_states", "target_hidden_size"},
    LAYER.idle | TRAINING | {"modal_type", "target_model_type"},
    {**LAYER.only, **NORMS},
)
EAGLE3_NESTED = Keys(  # of eagle_config
    AUX,
    frozenset({"has_lm_head"}),
    {
        **NORMS,
        "next_layer_regular": (True,),
        "parallel_draft_heads_num_layers": (),
        "parallel_draft_step": (1,),
        "use_input_layernorm_in_first_layer": (True,),
        "use_last_layernorm": (True,),
        "use_mtp_layernorm": (False,),
    },
)
SPECULATORS = Keys(  # around a transformer_layer_config
    AUX | {"draft_vocab_size", "norm_before_residual", "speculators_config", "target_hidden_size", "transformer_layer_config"},
    COMMON | TRAINING | {"speculators_version"},
    {**NORMS, "speculators_model_type": ("eagle3",)},
)
SPECULATORS_LAYER = Keys(
    LAYER.honoured | {"hidden_size"},
    LAYER.idle - {"model_type"},
    {**LAYER.only, "model_type": ("llama", "qwen3")},
)

# Heads have no part of a decoder layer: such keys describe the model they were trained for.
BASE = LAYER.honoured | LAYER.idle | frozenset(LAYER.only) | {"hidden_size"}
MEDUSA = Keys(frozenset({"medusa_num_heads", "medusa_num_layers"}), BASE)
HYDRA = Keys(
    frozenset({"hydra_num_heads", "hydra_num_layers"}),
    BASE | {"dropout_rate"},
    {"hydra_head_arch": ("mlp", "prefix-mlp"), "grounded_heads": (True,), "hidden_state_offset": (0,)},
)
