"""The draft model of transformers' assisted generation: any causal model with the target's vocabulary."""

from dataclasses import replace

from transformers import PreTrainedModel

from methods.core.errors import UserError
from methods.core.weights import Trained
from specbench.config.options import Options
from specbench.engines.registry import SHARED_WITH
from specbench.targets import Loaded, drafters, families


def source_of(arm: str, options: Options, target: str) -> str:
    """The folder or hub id of the arm's draft model for a target. Raises UserError where none is given or known."""
    given = options.drafter_files
    source = given.get(arm) or given.get("hf-assisted") or given.get(SHARED_WITH) or families.drafter_of(target, SHARED_WITH)
    if source is None:
        raise UserError("hf-assisted needs a draft model with the target's vocabulary; pass --drafter hf-assisted=FOLDER|HUB_ID")
    return str(source)


def assistant(source: str, loaded: Loaded, nodes: int) -> Trained[PreTrainedModel]:
    """The draft model on the target's device in its dtype, drafting at most ``nodes`` tokens a round.

    Raises UserError where it cannot be loaded or has another vocabulary.
    """
    trained = drafters.draft_model(loaded, source)
    model = trained.module.eval().requires_grad_(False)
    sizes = (model.config.vocab_size, loaded.model.config.vocab_size)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"draft model {source}: its vocabulary ({sizes[0]} tokens) is not {loaded.name}'s ({sizes[1]}), which transformers' assisted "
            "generation needs; give another one, or use --method sps, which drafts from what both have"
        )
    # Where generate looks for them. A constant number of drafts: the other schedules carry theirs from answer to answer.
    model.generation_config.num_assistant_tokens = nodes
    model.generation_config.num_assistant_tokens_schedule = "constant"
    return replace(trained, module=model)
