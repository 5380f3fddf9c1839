"""The configs of published EAGLE-3 drafters: all keys at one level, and which of the target's layers are read.

EAGLE-3 (Li et al., 2025) reads three layers. Later drafters name theirs, and speculators folders keep
the layer's own settings one level deeper.
"""

from dataclasses import replace
from typing import Any

from methods.core.errors import UserError
from methods.core.published import Checkpoint
from methods.core.published_keys import AUX, CONFIG, EAGLE3, EAGLE3_NESTED, SPECULATORS, SPECULATORS_LAYER


def layers_read(layers: int) -> tuple[int, ...]:
    """Return which of a target's layers are read: 2, half and all but 3, as published.

    With fewer than 7 layers these would coincide; the last three are read instead.
    """
    return (2, layers // 2, layers - 3) if layers >= 7 else tuple(range(max(0, layers - 3), layers))


def flattened(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with all its config's keys at one level.

    Raises UserError for keys that are unknown or have an effect that is not implemented.
    """
    own, source = checkpoint.config, checkpoint.source

    def part(key: str) -> dict[str, Any]:
        if not isinstance(own[key], dict):
            raise UserError(f"{CONFIG} of drafter {source} has {key}={own[key]!r}, which is no JSON object; fetch it again")
        return own[key]

    if "transformer_layer_config" in own:
        inner = part("transformer_layer_config")
        SPECULATORS.check(own, source)
        SPECULATORS_LAYER.check(inner, source, "transformer_layer_config")
        for key, of in (("norm_before_residual", own), ("model_type", inner)):
            if of.get(key) is None:
                raise UserError(f"{CONFIG} of drafter {source} has no {key}, whose default differs between programs; add it")
        return replace(checkpoint, config=inner | {key: own[key] for key in SPECULATORS.honoured & own.keys()})

    EAGLE3.check(own, source)
    nested = part("eagle_config") if own.get("eagle_config") is not None else {}
    EAGLE3_NESTED.check(nested, source, "eagle_config")
    for key in AUX & nested.keys():
        if own.get(key) is not None and own[key] != nested[key]:
            raise UserError(
                f"{CONFIG} of drafter {source} has {key}={own[key]!r}, and {nested[key]!r} in eagle_config; remove the wrong one"
            )
    return replace(checkpoint, config=own | {key: nested[key] for key in AUX & nested.keys()})


def layers_of(checkpoint: Checkpoint, layers: int, *, first_is_shifted: bool) -> tuple[int, ...]:
    """Return which of a target's layers a published drafter reads the input of.

    ``eagle_aux_hidden_state_layer_ids`` names them; the number of layers stands for the output of the
    last. Without it they are those of ``layers_read``, and none if ``use_aux_hidden_state`` is false.
    vLLM reads the inputs of the layers named, SGLang their outputs if the first is 1: ids that begin so
    count up to the layer before (``first_is_shifted``). Raises UserError for ids the target does not
    have.
    """
    own, key = checkpoint.config, "eagle_aux_hidden_state_layer_ids"
    if not checkpoint.flag("use_aux_hidden_state", default=True):
        return ()

    ids, what = own.get(key), f"{CONFIG} of drafter {checkpoint.source}"
    if not ids:
        reads = layers_read(layers)
    else:
        if not isinstance(ids, list) or any(type(each) is not int for each in ids) or ids != sorted(set(ids)):
            raise UserError(f"{what} has {key}={ids!r}; it must be a list of layers in ascending order")
        shift = 1 if first_is_shifted and ids[0] == 1 else 0
        reads = tuple(each + shift for each in ids)
        if reads[0] < 0 or reads[-1] > layers:
            raise UserError(f"{what} has {key}={ids!r}, this target has {layers} layers; use its own target")
    if len(reads) != checkpoint.number("num_aux_hidden_states", len(reads), most=1 << 16):
        raise UserError(
            f"{what} has num_aux_hidden_states={own['num_aux_hidden_states']} and names {len(reads)} layers; correct one of them"
        )
    return reads
