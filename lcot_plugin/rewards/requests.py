"""A prompt's record and a completion in, what the scorer needs to know of it out."""

from __future__ import annotations

from lcot_plugin.rewards.settings import read_settings
from lcot_plugin.types import Completion, PromptRecord, ScoringRequest


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
