"""The charts' titles and explanations in the Board's languages."""

import re
from typing import Any

import pytest

from lcot_plugin.integration.board.panel_texts import PANELS, translated
from lcot_plugin.integration.board.view_texts import LANGUAGES
from lcot_plugin.report.panels import GROUPS, Panel, run_panels

LETTERS = {"ru": "[\u0430-\u044f]", "zh": "[一-鿿]", "ko": "[가-힣]", "ja": "[ぁ-ヿ一-鿿]"}
METRICS: list[dict[str, Any]] = [
    {"step": step, **{name.replace("*", "x"): 0.5 for group in GROUPS for name, _ in group.metrics}} for step in (1, 2)
]


def test_every_chart_has_its_words_in_every_language() -> None:
    assert set(PANELS) == {group.title for group in GROUPS}
    for group in GROUPS:
        assert len(PANELS[group.title]) == len(LANGUAGES) - 1
        for lang, (title, explanation) in zip(LANGUAGES[1:], PANELS[group.title], strict=True):
            for words in (title, explanation):
                assert re.search(LETTERS[lang], words), (lang, words)
            named = re.findall(r"max_new_tokens|avg@n|pass@k|0\.\d+|float32|bf16", group.explanation)
            assert all(name in explanation for name in named), (lang, explanation)


@pytest.mark.parametrize("lang", LANGUAGES[1:])
def test_a_drawn_chart_changes_its_words_and_nothing_else(lang: str) -> None:
    drawn = run_panels(METRICS)
    assert len(drawn) == len(GROUPS)
    for panel in drawn:
        title, svg, explanation = translated(panel, lang)
        assert (title, explanation) == PANELS[panel.title][LANGUAGES.index(lang) - 1]
        assert f"<b>{title}</b>" in svg and f'aria-label="{title}. ' in svg
        assert f"<b>{panel.title}</b>" not in svg
        assert len(svg) - len(panel.svg) == 2 * (len(title) - len(panel.title))


def test_another_language_and_another_chart_are_left_in_english() -> None:
    panel = Panel("Reward", "<b>Reward</b>", "Mean.")
    assert translated(panel, "en") is panel
    assert translated(panel, "fr") is panel
    other = Panel("Of the user's own", "<b>x</b>", "Mean.")
    assert translated(other, "ru") is other
