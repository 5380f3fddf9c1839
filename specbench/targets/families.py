"""The model families that people run Spec-Bench on: prompt template, stop tokens and known drafters of each.

A drafter is listed where its authors published it for exactly that target. Under ``sps`` it is a smaller model with the same tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from methods.core.json_text import parse_json
from specbench.targets.chat import CHAT


@dataclass(frozen=True)
class Family:
    """A model family.

    ``targets`` maps hub id -> kind of drafter -> the drafter's hub id. ``stops`` are tokens that end an
    answer in addition to those the model's config lists.
    """

    title: str
    targets: Mapping[str, Mapping[str, str]]
    template: str = CHAT
    stops: tuple[str, ...] = ()
    legacy: bool = False  # tokenizer from before transformers 4.31: text after a special token starts with a space


LLAMA_3_SMALL = {"sps": "meta-llama/Llama-3.2-1B-Instruct"}
QWEN_2_SMALL = {"sps": "Qwen/Qwen2-0.5B-Instruct"}
QWEN_2_5_SMALL = {"sps": "Qwen/Qwen2.5-0.5B-Instruct"}
QWEN_3_SMALL = {"sps": "Qwen/Qwen3-0.6B"}

FAMILIES = (
    Family(
        "Vicuna v1.3",
        {
            "lmsys/vicuna-7b-v1.3": {
                "medusa": "FasterDecoding/medusa-vicuna-7b-v1.3",
                "hydra": "ankner/hydra-vicuna-7b-v1.3",
                "eagle": "yuhuili/EAGLE-Vicuna-7B-v1.3",
                "sps": "double7/vicuna-68m",
            },
            "lmsys/vicuna-13b-v1.3": {
                "medusa": "FasterDecoding/medusa-vicuna-13b-v1.3",
                "hydra": "ankner/hydra-vicuna-13b-v1.3",
                "eagle": "yuhuili/EAGLE-Vicuna-13B-v1.3",
                "eagle3": "yuhuili/EAGLE3-Vicuna1.3-13B",
                "sps": "double7/vicuna-68m",
            },
            "lmsys/vicuna-33b-v1.3": {
                "medusa": "FasterDecoding/medusa-vicuna-33b-v1.3",
                "hydra": "ankner/hydra-vicuna-33b-v1.3",
                "eagle": "yuhuili/EAGLE-Vicuna-33B-v1.3",
                "sps": "double7/vicuna-68m",
            },
        },
        template="vicuna_v1.1",
        stops=("</s>",),
        legacy=True,
    ),
    Family(
        "Llama 2 Chat",
        {
            "meta-llama/Llama-2-7b-chat-hf": {"eagle": "yuhuili/EAGLE-llama2-chat-7B", "sps": "JackFram/llama-68m"},
            "meta-llama/Llama-2-13b-chat-hf": {"eagle": "yuhuili/EAGLE-llama2-chat-13B", "sps": "JackFram/llama-68m"},
            "meta-llama/Llama-2-70b-chat-hf": {"eagle": "yuhuili/EAGLE-llama2-chat-70B", "sps": "JackFram/llama-68m"},
        },
        stops=("</s>",),
    ),
    Family(
        "Llama 3 Instruct",
        {
            "meta-llama/Meta-Llama-3-8B-Instruct": {"eagle": "yuhuili/EAGLE-LLaMA3-Instruct-8B"},
            "meta-llama/Meta-Llama-3-70B-Instruct": {
                "eagle": "yuhuili/EAGLE-LLaMA3-Instruct-70B",
                "sps": "meta-llama/Meta-Llama-3-8B-Instruct",
            },
        },
        stops=("<|eot_id|>",),
    ),
    Family(
        "Llama 3.1, 3.2 and 3.3 Instruct",
        {
            "meta-llama/Llama-3.1-8B-Instruct": {
                "eagle": "yuhuili/EAGLE-LLaMA3.1-Instruct-8B",
                "eagle3": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",
                **LLAMA_3_SMALL,
            },
            "meta-llama/Llama-3.1-70B-Instruct": LLAMA_3_SMALL,
            "meta-llama/Llama-3.2-1B-Instruct": {},
            "meta-llama/Llama-3.2-3B-Instruct": LLAMA_3_SMALL,
            "meta-llama/Llama-3.3-70B-Instruct": {"eagle3": "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B", **LLAMA_3_SMALL},
        },
        stops=("<|eot_id|>",),
    ),
    Family(
        "Qwen2 Instruct",
        {
            "Qwen/Qwen2-0.5B-Instruct": {},
            "Qwen/Qwen2-1.5B-Instruct": QWEN_2_SMALL,
            "Qwen/Qwen2-7B-Instruct": {"eagle": "yuhuili/EAGLE-Qwen2-7B-Instruct", **QWEN_2_SMALL},
            "Qwen/Qwen2-72B-Instruct": {"eagle": "yuhuili/EAGLE-Qwen2-72B-Instruct", **QWEN_2_SMALL},
        },
        stops=("<|im_end|>",),
    ),
    Family(
        "Qwen2.5 Instruct",
        {
            "Qwen/Qwen2.5-0.5B-Instruct": {},
            "Qwen/Qwen2.5-1.5B-Instruct": QWEN_2_5_SMALL,
            "Qwen/Qwen2.5-3B-Instruct": QWEN_2_5_SMALL,
            "Qwen/Qwen2.5-7B-Instruct": QWEN_2_5_SMALL,
            "Qwen/Qwen2.5-14B-Instruct": {"eagle": "Zjcxy-SmartAI/Eagle-Qwen2.5-14B-Instruct", **QWEN_2_5_SMALL},
            "Qwen/Qwen2.5-32B-Instruct": QWEN_2_5_SMALL,
            "Qwen/Qwen2.5-72B-Instruct": QWEN_2_5_SMALL,
        },
        stops=("<|im_end|>",),
    ),
    Family(
        "Qwen3",
        {
            "Qwen/Qwen3-0.6B": {},
            "Qwen/Qwen3-1.7B": {"eagle3": "AngelSlim/Qwen3-1.7B_eagle3", **QWEN_3_SMALL},
            "Qwen/Qwen3-4B": {"eagle3": "AngelSlim/Qwen3-4B_eagle3", **QWEN_3_SMALL},
            "Qwen/Qwen3-8B": {"eagle3": "AngelSlim/Qwen3-8B_eagle3", **QWEN_3_SMALL},
            "Qwen/Qwen3-14B": {"eagle3": "AngelSlim/Qwen3-14B_eagle3", **QWEN_3_SMALL},
            "Qwen/Qwen3-32B": {"eagle3": "AngelSlim/Qwen3-32B_eagle3", **QWEN_3_SMALL},
        },
        stops=("<|im_end|>",),
    ),
    Family(
        "Mistral 7B Instruct",  # v0.1 has sliding windows, whose cache cannot be rolled back
        {"mistralai/Mistral-7B-Instruct-v0.2": {}, "mistralai/Mistral-7B-Instruct-v0.3": {}},
        stops=("</s>",),
    ),
)
OTHER = Family("", {})  # the row of targets that are not in the table


def hub_ids() -> list[str]:
    """Return the hub ids of all targets in the table."""
    return [identity for family in FAMILIES for identity in family.targets]


def family_of(target: str) -> Family:
    """Return the family of a target, given by hub id or folder; ``OTHER`` where it is not in the table."""
    identity = _find_id(target)
    return next((family for family in FAMILIES if identity in family.targets), OTHER)


def drafter_of(target: str, kind: str) -> str | None:
    """Return the hub id of the known drafter of that kind for a target, given by hub id or folder; None without one.

    The name in a folder's config is ignored: a fine-tuned model's config may still name its base model.
    """
    return family_of(target).targets.get(_find_id(target, use_config=False) or "", {}).get(kind)


def _find_id(target: str, *, use_config: bool = True) -> str | None:
    """Return the table's hub id of a target, or None.

    A folder is recognised by its own name, by a folder of the hub's cache around it, or by the name in its config.
    """
    if not Path(target).is_dir():
        return {_normalize(identity): identity for identity in hub_ids()}.get(_normalize(target))
    by_name = {_normalize(identity).rpartition("/")[2]: identity for identity in hub_ids()}
    matches = (by_name.get(_normalize(name).rpartition("/")[2]) for name in _possible_names(Path(target), use_config))
    return next((identity for identity in matches if identity), None)


def _possible_names(folder: Path, use_config: bool) -> list[str]:
    in_cache = [part.rpartition("--")[2] for part in folder.absolute().parts if part.startswith("models--")]
    if not use_config:
        return [folder.absolute().name, *in_cache]
    try:
        saved = parse_json((folder / "config.json").read_bytes()).get("_name_or_path")
    except (OSError, ValueError, AttributeError):  # loading the checkpoint reports a broken config
        saved = None
    return [folder.absolute().name, *in_cache, *([saved] if isinstance(saved, str) else [])]


def _normalize(name: str) -> str:
    """Return a hub id in lower case, without the prefix that Meta's repositories lost when they were renamed."""
    owner, slash, own = name.lower().rpartition("/")
    return f"{owner}{slash}{own.removeprefix('meta-')}"
