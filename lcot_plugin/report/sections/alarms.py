"""What the health monitor said, in its own words."""

from __future__ import annotations

from collections.abc import Sequence

from lcot_plugin.report.page import Html, Section, count, join, paragraph, shortened, tag
from lcot_plugin.report.subjects import Subject

MAX_ALARMS = 40
"""That are told of one run."""
MAX_WORDS = 2000
"""Characters of a message, and of what to try."""


def section(subjects: Sequence[Subject]) -> Section | None:
    """None where no run is watched: SFT, evaluations, and older runs, which kept no alarms."""
    told = [(subject, run_alarms(subject)) for subject in subjects if subject.run.alarms]
    watched = [subject for subject in subjects if subject.stage == "grpo" and subject.trained and subject.run.record]
    quiet = [subject for subject in watched if not subject.run.alarms]
    if not told and not quiet:
        return None
    parts: list[object] = []
    for subject, alarms in told:
        parts += [tag("h3", subject.name), alarms] if len(subjects) > 1 else [alarms]
    if quiet:
        names = f" in {', '.join(subject.name for subject in quiet)}" if len(subjects) > 1 else ""
        parts.append(
            paragraph(
                f"No alarms{names}: as far as was logged, entropy, truncation, lengths, rewards, KL, clipping, "
                "gradients and verdicts crossed none of the limits that are watched. A run can be poor without any "
                "alarm."
            )
        )
    return Section("alarms", "Health", join(parts))


def run_alarms(subject: Subject) -> Html:
    """The first alarms of a run."""
    alarms = subject.run.alarms
    shown = []
    for alarm in alarms[:MAX_ALARMS]:
        name = str(alarm.get("name", "alarm")).replace("_", " ")
        title = shortened(f"Step {alarm.get('step', '?')}: {name}")
        message, advice = shortened(str(alarm.get("message", "")), MAX_WORDS), alarm.get("advice")
        what_to_do = paragraph(tag("b", "What to try: "), shortened(str(advice), MAX_WORDS)) if advice else Html("")
        shown.append(tag("div", tag("h3", title), paragraph(message), what_to_do, class_="alarm"))
    if len(alarms) > MAX_ALARMS:
        rest = count(len(alarms) - MAX_ALARMS, "further alarm")
        shown.append(paragraph(f"{rest} in alarms.jsonl left out.", class_="note"))
    return join(shown)
