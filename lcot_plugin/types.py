"""The records that flow through lcot_plugin: one per arrow, all in this file.

    data set record --data.formats--> RawRecord               (what one schema says, nothing interpreted)
    RawRecord       --data--> Sample                          (question, images, thought, answer, gold; every set alike)
    Sample          --integration--> token ids, label mask    (SFT), PromptRecord (GRPO)
    PromptRecord    --integration.media--> EncodedPrompt      (images decoded and preprocessed, once per rollout)
    EncodedPrompt   --rollout--> RolloutGroup                 (G completions with the sampler's log-probabilities)
    RolloutGroup    --rewards--> one Score per completion     (the verdict and every reward, unweighted)
    Score           --policy.advantages--> TrainingSequence   (what the policy update needs of one completion)
    TrainingSequence --packing.groups--> PackedBatch          (prompts once per group, completions as segments below)

    token ids, label mask --packing.plan--> PackPlan          (which examples every rank computes at every micro-step)
    PackPlan        --integration--> PackExample              (the examples of one pack, pictures decoded)
    PackExample     --packing.batch--> PackedBatch            (one flat row of tokens cut into segments; nothing padded)

Nothing here imports torch or NumPy: tensors and arrays appear in annotations only.

Legend: P prompts, G completions per prompt, T tokens of one completion, L tokens of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch


class Ending(StrEnum):
    """Why a completion ended."""

    STOPPED = "stopped"
    """The model wrote one of its end tokens or stop strings."""
    TRUNCATED = "truncated"
    """`max_new_tokens` was reached first."""


class Outcome(StrEnum):
    """What the verifier found."""

    MATCHED = "matched"
    """The extracted answer equals the gold answer."""
    MISMATCHED = "mismatched"
    """An answer was extracted and it is another one."""
    UNPARSABLE = "unparsable"
    """No answer could be extracted from the completion."""
    GOLD_UNPARSABLE = "gold_unparsable"
    """The gold answer itself cannot be read: the data set's fault, so no reward is given."""
    TIMED_OUT = "timed_out"
    """The verifier was killed at its deadline."""


@dataclass(frozen=True)
class MatchSettings:
    """How an answer is compared with the gold answer, beyond the kind of answer it is. Hashable."""

    options: tuple[str, ...] = ()
    """Texts of a choice's options in order, without their letters; empty where they are not known."""
    aliases: tuple[str, ...] = ()
    """Further right answers."""
    relative_tolerance: float = 0.0
    """Of numbers: |answer - gold| <= max(relative_tolerance * |gold|, absolute_tolerance). Both 0: exactly, or to the
    digits that a long decimal was written with."""
    absolute_tolerance: float = 0.0
    """In the gold answer's unit."""
    min_anls: float = 1.0
    """Of text: the least normalised Levenshtein similarity that matches; ANLS itself counts from 0.5."""
    min_iou: float = 0.5
    """Of boxes: the least intersection over union at which two boxes are the same object."""
    image_size: tuple[int, int] | None = None
    """(width, height) in pixels, to compare boxes in pixels with normalised ones."""
    include_thought: bool = False
    """Whether an answer is searched inside `<think>...</think>` too."""


class GoldAnswer(NamedTuple):
    """The right answer to a record's question, and how answers are compared with it."""

    text: str
    answer_type: str = "auto"
    settings: MatchSettings = MatchSettings()


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one completion."""

    outcome: Outcome
    extracted: str | None = None
    """The answer read from the completion, None where nothing was found."""
    gold: str = ""
    answer_type: str = ""
    """The kind of comparison that decided: expression, number, choice, text."""

    @property
    def matched(self) -> bool:
        return self.outcome is Outcome.MATCHED


class RecordFault(StrEnum):
    """What can be wrong with a record of a data set."""

    MALFORMED = "malformed record"
    """A column is missing or of a type that the format cannot have."""
    MISSING_IMAGE = "missing image"
    OUTSIDE_MEDIA_DIR = "image outside media_dir"
    """A path that leads out of `media_dir`: `../../etc/passwd`, or an absolute path elsewhere."""
    BROKEN_IMAGE = "broken image"
    """Empty, cut off, or of no known type."""
    IMAGE_TOO_LARGE = "image too large"
    """More pixels than Pillow decodes without taking it for a decompression bomb."""
    PLACEHOLDERS = "<image> and images differ"
    """More, or fewer but not zero, placeholders than images."""
    NO_GOLD = "no gold answer"
    """GRPO and evaluation need one."""
    NO_RESPONSE = "no response"
    """SFT needs one."""
    UNCLOSED_THOUGHT = "thought not closed"
    NO_THOUGHT = "no thought"
    """An answer without any reasoning."""
    NO_ANSWER = "no answer"
    """A thought after which no answer is stated."""
    CONTRADICTS_GOLD = "answer contradicts gold"
    OVERLONG = "longer than cutoff_len"


class Handling(StrEnum):
    """What was done with a record that has a fault."""

    KEPT = "kept"
    """As it is."""
    REPAIRED = "repaired"
    TRUNCATED = "truncated"
    """Its thought was shortened; images, answer and end token are whole."""
    DROPPED = "dropped"


@dataclass(frozen=True)
class Finding:
    """One fault of one record and what became of it."""

    fault: RecordFault
    handling: Handling
    detail: str = ""
    """What exactly, for the report: the path, the text, the sizes."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """`user` or `assistant`."""
    content: str
    """Text; `<image>`, `<video>` stand where the media belong."""


@dataclass
class RawRecord:
    """What a format found in one record. Nothing is interpreted: thoughts are not yet split from answers, images are as
    written, placeholders may be missing."""

    turns: list[Turn]
    """Without the system turn; user first, alternating; an RL record ends with a user turn."""
    images: list[Any] = field(default_factory=list)
    """Paths, `file:///` URLs, base64 strings, data URLs, bytes, `{"bytes", "path"}` or PIL images."""
    videos: list[Any] = field(default_factory=list)
    system: str | None = None
    thought: str | None = None
    """The chain of thought, where it has a column of its own; the last turn then holds the answer only."""
    gold: Any = None
    """The verifiable answer as written: text, number or list; None where the record has none."""
    answer_type: str = "auto"
    options: list[str] = field(default_factory=list)
    """The options of a multiple-choice question, in order, where they have a column of their own."""
    subset: str = ""
    """The part of the data set that the record says it comes from (`source`, `category`...)."""
    match: Any = None
    """How its answer is compared, as written: an object of MatchSettings' fields, its JSON, or None."""


@dataclass(frozen=True)
class Trace:
    """An assistant's response, read."""

    thought: str | None
    """Without its delimiters; None where there is none."""
    conclusion: str
    r"""What follows the thought, as written (`The area is \boxed{5}.`); empty where nothing does."""
    answer: str | None
    """The short final answer (`5`); None where none is stated."""
    fault: RecordFault | None = None
    """UNCLOSED_THOUGHT, NO_THOUGHT or NO_ANSWER."""


@dataclass(frozen=True)
class Sample:
    """One record of any data set, in the one form that everything after this sees."""

    question: str
    """The last user turn; one `<image>` per image over `history` and `question`, in order."""
    images: list[Any]
    """Absolute paths of existing files, or bytes."""
    videos: list[Any]
    trace: Trace | None
    """The response; None for an RL record."""
    gold: str | None
    answer_type: str
    """auto, choice, number, expression, text, sequence or boxes."""
    options: list[str]
    """Texts of the options without their letters; empty where the question is not multiple choice."""
    history: list[Turn]
    """The turns before `question`: user, assistant, user, assistant..."""
    system: str | None
    subset: str
    match: MatchSettings = MatchSettings()
    """How the answer is compared with the gold answer."""


@dataclass(frozen=True)
class PromptRecord:
    """One verifiable problem, tokenised; what the GRPO data loader yields."""

    input_ids: list[int]
    """[L] token ids, image placeholders already expanded, ends where the assistant's turn begins."""
    images: list[Any]
    """Paths, bytes, `{"bytes", "path"}` or PIL images, one per image; empty for a text-only problem."""
    question: str
    """The last user turn as written in the data set."""
    gold: str
    source: str
    """Name of the data set in dataset_info.json."""
    record: int
    """0-based row of the data set (after its `num_samples` and `max_samples`)."""
    videos: list[Any] = field(default_factory=list)
    audios: list[Any] = field(default_factory=list)
    answer_type: str = "auto"
    match: str = ""
    """JSON of the MatchSettings that are not the default's."""
    opening: str = ""
    """What of the response the prompt ends with, where the family's template opens the thought: `<think>\\n`."""
    pass_rate: float | None = None
    """Share of a model's completions that were right when it was measured (`lcot data difficulty`); None where not."""
    problem_id: str = ""
    """Of the problem that this record is one of several variants of (DynaMath); empty where it is the only one."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it."""

    record: PromptRecord
    media: dict[str, torch.Tensor]
    """The processor's tensors for this prompt's images (pixel_values, image_grid_thw...); empty without media."""
    usable: bool = True
    """False where a picture is broken and a grey one stands in for it: its completions must not be trained on."""
    max_new_tokens: int | None = None
    """Limit of its completions where it is less than the run's: what the model's context leaves after the prompt."""


@dataclass
class Completion:
    """One sampled answer."""

    token_ids: list[int]
    """[T] token ids, the end token included where there is one."""
    sampler_logps: list[float]
    """[T] log-probability of each token in nats under the distribution that it was drawn from: at the sampling
    temperature, placeholder tokens excluded, after repetition penalty, top-k, top-p and min-p."""
    ending: Ending
    text: str
    """Decoded, without the end token."""
    policy_logps: list[float] | None = None
    """[T] the same under the policy itself, before penalty, top-k, top-p, min-p; None where none narrowed the draw."""
    policy_step: int | None = None
    """Optimizer steps that the policy had made when it wrote this; None outside of training."""


@dataclass
class RolloutGroup:
    """The G completions of one prompt."""

    prompt: EncodedPrompt
    completions: list[Completion]


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn."""

    num_generations: int
    """Completions per prompt."""
    max_new_tokens: int
    temperature: float = 1.0
    """0.0 means greedy: the most probable token; one completion per prompt is enough."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    """Tokens less probable than this share of the most probable token are not drawn."""
    repetition_penalty: float = 1.0
    stop_strings: tuple[str, ...] = ()
    """A completion whose text holds one of these has stopped; the text keeps it."""
    seed: int = 0
    """With the prompt's slot and the completion's index it decides every random number."""

    @property
    def narrows(self) -> bool:
        """Whether tokens are drawn from anything but the policy at this temperature."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0 or self.repetition_penalty != 1


@dataclass(frozen=True)
class ScoringRequest:
    """One completion to be judged."""

    completion: str
    gold: str
    question: str = ""
    answer_type: str = "auto"
    source: str = ""
    record: int = -1
    ending: Ending = Ending.STOPPED
    completion_ids: list[int] = field(default_factory=list)
    settings: MatchSettings = MatchSettings()


@dataclass(frozen=True)
class Score:
    """Every reward of one completion, unweighted, and their weighted sum."""

    rewards: dict[str, float | None]
    """Reward by function name; None where the function abstained."""
    total: float | None
    """Weighted sum of the rewards that are not None; None where all abstained: such a completion is not trained on."""
    verdict: Verdict | None
    """The answer verifier's verdict; None where its gold answer is absent."""


@dataclass
class TrainingSequence:
    """One completion as the policy update sees it."""

    prompt: EncodedPrompt
    completion: Completion
    group: int
    """Its prompt's place in the rollout over all processes: sequences of one group share a prompt."""
    advantage: float = 0.0
    """Against the other completions of its group."""
    trained: bool = True
    """False where it must not enter the loss (truncated and masked, broken picture, no reward): it is not computed."""
    token_weight: float = 0.0
    """What each of its tokens weighs in the loss of its optimizer step, normalisation included."""
    old_logps: torch.Tensor | None = None
    """[T] float32 log-probabilities under the policy at rollout time by the trainer's own forward pass (of a replayed
    group: by the sampler); None where one update is made per rollout and the current ones serve."""
    ref_logps: torch.Tensor | None = None
    """[T] float32 log-probabilities under the reference policy; None where the objective has no KL term."""
    replayed: bool = False
    """Whether it was written in an earlier rollout."""


@dataclass(frozen=True)
class ExampleSizes:
    """What a plan must know of every example of a data set; nothing is decoded for it."""

    tokens: np.ndarray
    """[n] int64, length in tokens, image placeholders included."""
    patches: np.ndarray
    """[n] int64, patches that the vision tower reads; 0 for text."""
    labels: np.ndarray
    """[n] int64, tokens that are trained on."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PackLimits:
    """What a pack may hold at most."""

    max_tokens: int
    max_patches: int = 0
    """0: as many as the tokens allow."""


@dataclass(frozen=True)
class PackPlan:
    """The packs of one epoch, in the order of training.

    Pack `m * num_ranks + r` is what rank r computes at micro-step m. Example with 2 ranks and 2 micro-steps per
    optimizer step, 5 examples: `indices 3 0 2 4 1`, `offsets 0 1 3 4 5`: in the first micro-step rank 0 has example 3
    and rank 1 examples 0 and 2, in the second rank 0 has 4 and rank 1 has 1.
    """

    indices: np.ndarray
    """[num_placed] int64, examples in the order of the packs."""
    offsets: np.ndarray
    """[num_packs + 1] int64: pack k is `indices[offsets[k]:offsets[k + 1]]`."""
    idle: np.ndarray
    """[num_packs] bool: True where a pack repeats an example because a rank would have had none; its labels are
    masked."""
    num_ranks: int
    micro_steps: int
    """Micro-steps per optimizer step; the last optimizer step of an epoch may have fewer."""

    @property
    def num_packs(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Segments:
    """How a flat row of tokens is cut, and who sees whom.

    A token sees the tokens up to itself of its own segment, and every token of its segment's ancestors. Example, a
    prompt of 5 tokens and two completions of 3 and 2: `lengths (5, 3, 2)`, `parents (-1, 0, 0)`: tokens
    `p p p p p a a a b b`; the last b sees `p p p p p` and both b.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...] = ()
    """Per segment the index of an earlier one, or -1; empty where no segment has a parent."""
    image_blocks: tuple[tuple[int, int], ...] = ()
    """Flat ranges [start, end), each within one segment, whose tokens see each other in both directions (Gemma 3);
    empty for families that are causal inside images too."""

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class PackExample:
    """One example of a pack as the model takes it."""

    input_ids: list[int]
    """[L] token ids, image placeholders expanded."""
    labels: list[int]
    """[L] the token itself where it is trained, -100 elsewhere."""
    media: dict[str, torch.Tensor] = field(default_factory=dict)
    """The processor's tensors of this example's images and videos; the first axis runs over images, tiles, patches or
    (LLaVA-OneVision's batch_num_images) examples. Empty without media."""


@dataclass(frozen=True)
class PackGroup:
    """A prompt and some of its completions, as a pack takes them: the prompt is computed once for all."""

    prompt_ids: list[int]
    """[L] token ids, image placeholders expanded."""
    completions: list[list[int]]
    """Token ids of each completion, all trained on."""
    media: dict[str, torch.Tensor] = field(default_factory=dict)
    """The processor's tensors of the prompt's images and videos; empty without media."""


@dataclass
class PackedBatch:
    """What the model computes in one pass: N tokens of several segments in one row, none of them padding."""

    input_ids: torch.Tensor
    """[1, N] int64."""
    position_ids: torch.Tensor
    """[1, N] int64, or [3, 1, N] for multimodal rope (mrope); each example counts from 0."""
    segments: Segments
    media: dict[str, torch.Tensor]
    """The processor's tensors of all images, in the order of their tokens; empty without images."""
    token_types: dict[str, torch.Tensor]
    """Token types that the family's forward asks for, [1, N] int64 each."""
    target_columns: torch.Tensor
    """[n] int64, the column before each trained token: its hidden state predicts it."""
    target_ids: torch.Tensor
    """[n] int64, the trained tokens."""
    target_weights: torch.Tensor
    """[n] float32, what each weighs in the loss before normalisation: 1, or 1 / (trained tokens of its example); 0 in
    an idle pack."""
    num_patches: int = 0
    num_examples: int = 0
    """Examples that are trained on."""

    def to(self, device: Any, non_blocking: bool = False) -> PackedBatch:
        """A copy with every tensor on `device`; the name and signature that accelerate looks for."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """A copy with every tensor in pinned memory; the name that torch's DataLoader looks for."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        def mapped(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: mapped(item) for key, item in value.items()}
            return change(value) if hasattr(value, "to") else value

        return PackedBatch(**{item.name: mapped(getattr(self, item.name)) for item in fields(self)})
