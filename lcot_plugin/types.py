"""The records that flow through lcot_plugin: one per arrow, all in this file.

    data set record --data.formats--> RawRecord               (what one schema says, nothing interpreted)
    RawRecord       --data--> Sample                          (question, images, thought, answer, gold; every set alike)
    Sample          --integration--> token ids, label mask    (SFT), PromptRecord (GRPO)
    PromptRecord    --integration.media--> EncodedPrompt      (images decoded and preprocessed, once per rollout)
    EncodedPrompt   --rollout--> RolloutGroup                 (G completions with the sampler's log-probabilities)
    RolloutGroup    --rewards--> one Score per completion     (the verdict and every reward, unweighted)
    Score           --policy.advantage--> TrainingSequence    (what one row of the policy update needs)

Nothing here imports torch: tensors appear in annotations only.

Legend: P prompts, G completions per prompt, T tokens of one completion, L tokens of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Ending(StrEnum):
    """Why a completion ended."""

    STOPPED = "stopped"
    """The model wrote one of its end tokens."""
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
    opening: str = ""
    """What of the response the prompt ends with, where the family's template opens the thought: `<think>\\n`."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it."""

    record: PromptRecord
    media: dict[str, torch.Tensor]
    """The processor's tensors for this prompt's images (pixel_values, image_grid_thw...); empty without media."""
    usable: bool = True
    """False where a picture is broken and a grey one stands in for it: its completions must not be trained on."""


@dataclass
class Completion:
    """One sampled answer."""

    token_ids: list[int]
    """[T] token ids, the end token included where there is one."""
    sampler_logps: list[float]
    """[T] log-probability of each token in nats under the policy that wrote it, at the sampling temperature,
    with placeholder tokens excluded, before top-p and top-k."""
    ending: Ending
    text: str
    """Decoded, without the end token."""


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
    repetition_penalty: float = 1.0
    seed: int = 0
    """With the prompt's slot and the completion's index it decides every random number."""


class RolloutEngine(Protocol):
    """Writes completions with the current policy."""

    def generate(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Callable[[int], None] = ...,
    ) -> list[RolloutGroup]:
        """One group per prompt, in order.

        `model`: the training model without its parallel wrapper. `slots`: each prompt's place in the global batch,
        the same however many processes share it. `progress` is called with the number of completions just ended.
        """
        ...


class CompletionScorer(Protocol):
    """Judges completions."""

    def score(self, requests: list[ScoringRequest]) -> list[Score]:
        """One score per request, in order."""
        ...


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
    """One completion as a row of the policy update."""

    prompt: EncodedPrompt
    completion: Completion
    advantage: float
    """Group-relative advantage; 0.0 where the row is masked."""
    trained: bool
    """False where the row must not enter the loss (truncated and masked, or no reward)."""
    old_logps: list[float] | None = None
    """[T] log-probabilities under the policy at rollout time by the trainer's own forward pass; None where one
    update is made per rollout and the current ones serve."""
    ref_logps: list[float] | None = None
    """[T] log-probabilities under the reference policy; None where grpo_beta is 0."""
