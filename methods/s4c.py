"""S4C, a reconstruction from its abstract (He et al., 2025, arXiv 2506.14158).

The full text was not available. The design is multi-head drafting with the two inputs that the
abstract names. For the semantic one, a decoder layer reads [token embedding; target feature] of the
tokens verified in the last step. For the syntactic one, light heads go one token deeper each, and
every head reads the token that its branch drafted. Continuous verification tree: the next tree is
rooted at the last accepted node, and the results of verification on the accepted path (keys and
values moved in place, features) are the input of the next draft, with no recomputation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError, WeightsError, check_range
from methods.core.feature_layer import FeatureLayer, FeatureStream
from methods.core.policies import GrownTree, TreePolicy, check_tree
from methods.core.recycling import EXTRA_NODES, SuccessorTable
from methods.core.sampled_chain import Draws, SampledChain
from methods.core.target import Scores, Target
from methods.core.training import LOOKAHEAD, Batch, DrafterModule, Level, feature_loss, soft_cross_entropy
from methods.core.tree import DraftTree
from methods.core.vocabulary import check_vocabulary
from methods.core.weights import Trained

# Weight of a level's loss relative to the level before. It is small because every path depends on the
# first guess and all levels train the prefix layer. The updates of the heads themselves do not shrink
# with it, since Muon scales them to a fixed size.
DEPTH_DISCOUNT = 0.35
FEATURE_NOISE = 0.2  # width of the uniform noise on training features
SUCCESSORS = 2  # per token, with recycle=on
Heads = Literal["recurrent", "hydra", "independent"]
Prefix = Literal["layer", "none"]


@dataclass(frozen=True)
class Config:
    """Options of S4C; ``heads`` and ``prefix`` must be those of the weights."""

    nodes: int  # drafts per step
    depth: int = 5  # levels: the prefix layer's guess and one for each head
    width: int = 4  # nodes expanded per level, and guesses of each
    heads: Heads = "recurrent"
    prefix: Prefix = "layer"
    tree: Literal["continuous", "fresh"] = "continuous"  # fresh: the drafter rereads the whole text in every step
    recycle: Literal["off", "on"] = "off"  # an extension: some nodes are the target's earlier guesses at the same tokens

    def __post_init__(self) -> None:
        check_tree(self.nodes, self.depth, self.width)
        if self.recycle == "on" and self.nodes <= EXTRA_NODES:
            raise UserError(f"nodes is {self.nodes}, of which recycle=on takes {EXTRA_NODES}; choose at least {EXTRA_NODES + 1}")
        if self.tree == "fresh" and self.prefix == "none":
            raise UserError("tree=fresh rereads the text with the prefix layer, and prefix=none has none; leave one of them out")


@dataclass(frozen=True)
class Architecture:
    """The shape of S4C's weights."""

    heads: Heads = "recurrent"
    prefix: Prefix = "layer"
    depth: int = 5
    vocabulary: int = 0  # size of the draft vocabulary, the most frequent tokens of the training text; 0: all tokens

    def __post_init__(self) -> None:
        check_range("depth", self.depth, LOOKAHEAD - 1, least=2)
        check_vocabulary(self.vocabulary)


class LightHead(nn.Module):
    """A light head: state + W2 SiLU(W1 [state; context] + b).

    It is read out through a norm and the target's own head. Without W2 a head could raise a coordinate
    but hardly lower one, since SiLU is never below -0.28.
    """

    def __init__(self, width: int, inputs: int, eps: float):
        super().__init__()
        self.mix = nn.Linear(inputs * width, width)
        self.project = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=eps)

    def forward(self, state_PD: Tensor, inputs_PD: list[Tensor]) -> Tensor:
        """Return the next state PD from the state and the context, a list of PD tensors."""
        return state_PD + self.project(F.silu(self.mix(torch.cat(inputs_PD, dim=-1))))

    def read_out(self, state_PD: Tensor, lm_head: nn.Module) -> Tensor:
        """Return the logits of a state."""
        return lm_head(self.norm(state_PD.to(self.norm.weight.dtype)))


class Module(DrafterModule):
    """S4C's trained prefix layer and heads.

    Level 1 is guessed by the prefix layer or, without one, by a light head; level i by head i - 1.
    """

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__(target, architecture.vocabulary)
        self.architecture = architecture
        width, eps = target.hidden_size, target.rms_norm_eps
        self.first = FeatureLayer(target) if architecture.prefix == "layer" else LightHead(width, 2, eps)
        inputs = {"recurrent": lambda level: 2, "hydra": lambda level: level, "independent": lambda level: 1}[architecture.heads]
        self.heads = nn.ModuleList(LightHead(width, inputs(level), eps) for level in range(2, architecture.depth + 1))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set initial weights.

        The prefix passes the feature on, and the heads' norms give states the size of features.
        """
        if isinstance(self.first, FeatureLayer):
            self.first.start_from()
        for module in self.modules():
            if isinstance(module, LightHead):
                module.norm.weight.data.fill_(final_norm.pow(2).mean().sqrt().item())

    def head(self, level: int) -> LightHead:
        """Return the head of a level (2, 3, ...)."""
        head = self.heads[level - 2]
        assert isinstance(head, LightHead)
        return head

    def first_guess(self, first_PD: Tensor, lm_head: nn.Module) -> Tensor:
        """Return the logits of level 1; a prefix layer's output is read like a target feature."""
        return lm_head(first_PD) if isinstance(self.first, FeatureLayer) else self.first.read_out(first_PD, lm_head)

    def deeper(self, level: int, first_PD: Tensor, state_PD: Tensor, embeddings_PD: list[Tensor]) -> Tensor:
        """Return the state at ``level`` (2, 3, ...).

        It is computed from the state of the level before or of level 1, and from the embeddings of the
        tokens drafted so far.
        """
        head = self.head(level)
        if self.architecture.heads == "recurrent":
            return head(state_PD, [state_PD, embeddings_PD[-1]])
        return head(first_PD, [first_PD, *(embeddings_PD if self.architecture.heads == "hydra" else [])])

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses of at most ``count`` levels, given the true tokens before each."""
        yield from self._levels(batch.among(self.tokens_U), batch.features_BTD, flat_P, min(count, len(self.heads) + 1))

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the discounted sum over levels of both losses.

        They are SmoothL1 on the feature and soft cross-entropy on the guess, with weight 1 each.
        """
        batch, total = batch.among(self.tokens_U), flat_P.new_zeros((), dtype=torch.float32)
        for i, level in enumerate(self._levels(batch, batch.noisy_features(FEATURE_NOISE), flat_P, len(self.heads) + 1)):
            assert level.state_PD is not None
            apart = feature_loss(level.state_PD, batch, flat_P + i + 1) + soft_cross_entropy(level.logits_PU, batch, flat_P + i + 1)
            total = total + DEPTH_DISCOUNT**i * apart
        return total

    def _levels(self, batch: Batch, features_BTD: Tensor, flat_P: Tensor, count: int) -> Iterator[Level]:
        if isinstance(self.first, FeatureLayer):
            first_PD = self.first(batch.next_embeddings(), features_BTD).flatten(0, 1)[flat_P]
        else:
            feature_PD = features_BTD.flatten(0, 1)[flat_P]
            first_PD = self.first(feature_PD, [feature_PD, batch.embedding_at(flat_P + 1)])
        yield Level(first_PD, self.first_guess(first_PD, batch.head))

        state_PD = first_PD
        embeddings: list[Tensor] = []
        for level in range(2, count + 1):
            embeddings.append(batch.embedding_at(flat_P + level))
            state_PD = self.deeper(level, first_PD, state_PD, embeddings)
            yield Level(state_PD, self.head(level).read_out(state_PD, batch.head))


class Beam(NamedTuple):
    """The state of a growing tree: the W rows expanded last."""

    first_1D: Tensor  # the state of level 1
    state_WD: Tensor
    embeddings: tuple[Tensor, ...]  # of the tokens drafted on each row's branch, one WD tensor per level


class S4C:
    """A drafter of a prefix layer, which reads the text, and light heads, which go deeper."""

    reads = ()

    def __init__(self, module: Module, config: Config, target: Target):
        tokens_U = module.tokens_for(target.config.vocab_size)
        self.module, self.embed, self.lm_head = module, target.embed, target.head_over(tokens_U)
        own = config.nodes - (EXTRA_NODES if config.recycle == "on" else 0)
        policy = GrownTree(own, config.depth, config.width, tokens_U)
        self.policy: TreePolicy = policy
        self.sizes: tuple[int, ...] = (policy.size + config.nodes - own,)
        self._chain, self._draws_chains = SampledChain.within(policy, target, tokens_U), False

        self.stream = FeatureStream(module.first, target) if isinstance(module.first, FeatureLayer) else None
        self.rereads = config.tree == "fresh"
        self.recycled = SuccessorTable(target.config.vocab_size, SUCCESSORS, target.device) if config.recycle == "on" else None
        self._draft, self._draft_fresh = target.backend.capture(self._continue), target.backend.capture(self._grow)

        self._unread: tuple[Accepted, Tensor]  # the last step's path and features, set by ``begin`` and ``observe``
        self._seen: list[Tensor] = []  # with tree=fresh: the features of the whole text

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn: the prefix layer reads the prompt's features."""
        self._unread = first, scores.features_ND[-1:]
        self._chain.begin(sampling)
        if self.stream and self.rereads:
            self._seen = [scores.features_ND]
        elif self.stream:
            self.stream.begin(prompt, scores.features_ND)
        if self.recycled:
            self.recycled.clear()

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Keep the path and the features of the last tree; the next draft reads them."""
        if self.stream and self.rereads:
            self._seen.append(scores.features_ND[accepted.path_P])
        self._unread = accepted, scores.features_ND
        if self.recycled:
            self.recycled.learn(tree.tokens_N, scores.logits_NV)

    def draft(self, tokens: list[int]) -> DraftTree:
        """Read what was committed last (or the whole text, if fresh) and grow a tree after it."""
        draws = self._chain.draws() if self._draws_chains else None
        if not (self.stream and self.rereads):
            tree = self._draft(*self._unread, self.stream.span(tokens) if self.stream else 0, draws)
            if self.stream:
                self.stream.settle(self._unread[0])
            return tree

        *earlier, newest_PD = self._seen
        features_TD = torch.cat([*earlier, newest_PD])[: len(tokens) - 1]  # cuts the filler at the end of the newest
        self._seen = [features_TD]
        return self._draft_fresh(self._unread[0].emitted_P[-1], self.stream.reread(tokens, features_TD), draws)

    def draw_chains(self) -> None:
        """Draft chains drawn from q at temperatures above 0, as deep as the grown tree."""
        if self.recycled:
            raise UserError("recycle=on adds drafts that are not drawn from q, which this acceptance rule judges by; leave one of them out")
        self._draws_chains, self.sizes = True, (self.policy.size, self._chain.size)

    def wipe(self) -> None:
        """Clear the prefix layer's cache."""
        if self.stream:
            self.stream.wipe()

    def _continue(self, accepted: Accepted, features_ND: Tensor, span: int, draws: Draws | None) -> DraftTree:
        root = accepted.emitted_P[-1]
        if self.stream:
            return self._grow(root, self.stream.read(accepted, features_ND, span), draws)
        feature_1D = accepted.last(features_ND)
        return self._grow(root, self.module.first(feature_1D, [feature_1D, self.embed(root[None])]), draws)

    def _grow(self, root: Tensor, first_1D: Tensor, draws: Draws | None) -> DraftTree:
        beam, logits_1V = Beam(first_1D, first_1D, ()), self.module.first_guess(first_1D, self.lm_head)
        if draws is not None:
            return self._chain.grow(root, logits_1V, beam, self._expand, draws)
        tree = self.policy.grow(root, logits_1V, beam, self._expand)
        return self.recycled.extend(tree) if self.recycled else tree

    def _expand(self, tokens_W: Tensor, rows_W: Tensor, level: int, beam: Beam) -> tuple[Tensor, Beam]:
        """Apply the next head to the whole beam; each row keeps the tokens of its own branch."""
        embeddings = (*(each_WD[rows_W] for each_WD in beam.embeddings), self.embed(tokens_W))
        first_WD = beam.first_1D.expand(len(rows_W), -1)
        state_WD = self.module.deeper(level + 1, first_WD, beam.state_WD[rows_W], list(embeddings))
        logits_WV = self.module.head(level + 1).read_out(state_WD, self.lm_head)
        return logits_WV, Beam(beam.first_1D, state_WD, embeddings)


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    """Build the drafter for a target.

    Raises WeightsError where the options need weights of another architecture, UserError where they
    ask for more levels than the weights have.
    """
    trained = drafter.module.architecture
    for name in ("heads", "prefix"):
        asked, own = getattr(config, name), getattr(trained, name)
        if asked != own:
            raise WeightsError(f"{name}={asked} does not fit the S4C weights, which were trained with {name}={own}", "s4c", {name: asked})
    if config.depth > trained.depth:
        raise UserError(f"depth={config.depth} is more than the S4C weights' {trained.depth} levels; choose 1 to {trained.depth}")
    return S4C(target.backend.prepare(drafter.module), config, target)
