"""A completion and its prompt's record or its gold answer in, what the scorer or the verifier needs to know out."""

from __future__ import annotations

from lcot_plugin.rewards.settings import read_settings
from lcot_plugin.types import Completion, GoldAnswer, PromptRecord, ScoringRequest


def scoring_request(record: PromptRecord, completion: Completion) -> ScoringRequest:
    """The request that judges `completion`; RewardError where the record's settings of a comparison are wrong."""
    return ScoringRequest(
        # Without its opening, a thought that never closes would be read as an answer.
        completion=record.opening + completion.text,
        gold=record.gold,
        question=record.question,
        answer_type=record.answer_type,
        source=record.source,
        record=record.record,
        ending=completion.ending,
        completion_ids=completion.token_ids,
        settings=read_settings(record.match),
    )


def verification_request(completion: str, gold: GoldAnswer, record: int = -1) -> ScoringRequest:
    """The request whose verdict says whether `completion` states `gold`; record: for messages."""
    return ScoringRequest(completion, gold.text, answer_type=gold.answer_type, record=record, settings=gold.settings)
