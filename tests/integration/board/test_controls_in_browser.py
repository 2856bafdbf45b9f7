"""The controls in a real page: only there does a change of one component set off the events of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import BoardPage, board_server, find_chromium, horizontal_overflow, layout_faults, open_chromium, visit

CHROMIUM = find_chromium()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt install chromium")

SAVED = """top.model_name: lcot-demo-Qwen2.5-VL-1M
top.template: qwen2_vl_lcot
train.dataset: [demo_rl]
train.training_stage: GRPO
#lcot grpo_num_generations: '4'
#lcot grpo_beta: '0.01'
#lcot grpo_rollout_engine: vllm
#lcot grpo_vllm_url: http://127.0.0.1:8000
"""


def test_a_loaded_configuration_shows_its_controls_and_previews_them(tmp_path: Path) -> None:
    """On a phone, and in another language than that of its start."""
    from playwright.sync_api import expect

    assert CHROMIUM is not None
    (tmp_path / "llamaboard_config").mkdir()
    (tmp_path / "llamaboard_config/mine.yaml").write_text(SAVED)
    with board_server(tmp_path) as server, open_chromium(CHROMIUM) as chromium, visit(chromium, width=400) as seen:
        board = BoardPage(seen, server.url)
        expect(board.page.locator("#lcot_grpo_tab")).to_be_hidden()
        box = board.input("Config path")
        box.fill("mine.yaml")
        box.press("Enter")
        box.blur()
        board.wait_for_events()
        board.button("Load arguments").click()
        expect(board.page.locator("#lcot_grpo_tab")).to_be_visible()
        board.open_accordion("GRPO configurations")
        expect(board.control("grpo_num_generations")).to_have_value("4")
        expect(board.page.locator("#lcot_grpo_kl_tab")).to_be_visible()  # since there is a weight of the KL divergence
        board.open_accordion("Rollout engine")
        expect(board.control("grpo_vllm_url")).to_have_value("http://127.0.0.1:8000")
        expect(board.page.locator("#lcot_grpo_vllm_memory")).to_be_hidden()  # of a server that the run would start
        board.wait_for_events()
        board.button("Preview command").click()
        command = board.page.locator("code").filter(has_text="llamafactory-cli train").first
        for option in (
            "template qwen2_vl_lcot",
            "dataset demo_rl",
            "grpo_num_generations 4",
            "grpo_vllm_url http://127.0.0.1:8000",
        ):
            expect(command).to_contain_text(f"--{option}")
        assert not layout_faults(board.page, "#lcot_grpo_tab") and not horizontal_overflow(board.page)
        board.choose("Language", "zh")
        expect(board.page.locator("#lcot_grpo_beta")).to_contain_text("KL 权重")
        expect(board.control("grpo_beta")).to_have_value("0.01")
        assert not seen.errors
