# ruff: noqa: RUF001
"""Texts of the live view, the rollout viewer, the data preview and of Abort, in the Board's five languages.

In:  view_sentences. Out: `LOCALES`, entries for LLaMA-Factory's dictionary of that name (board.page merges them);
     `text`, for what is not a component's property.
"""

from __future__ import annotations

from typing import Any

from lcot_plugin.integration.board.view_sentences import SENTENCES
from lcot_plugin.report.completions_table import ORDERS

LANGUAGES = ("en", "ru", "zh", "ko", "ja")
OWN_RUN = "*"
"""The value of `live_run` that stands for the Board's own run; gradio shows no name for an empty one."""


def text(name: str, lang: str, /, **values: Any) -> str:
    """A sentence in a language of the Board; English where the language is not one of them."""
    sentences = SENTENCES[name]
    return sentences[LANGUAGES.index(lang) if lang in LANGUAGES else 0].format(**values)


def _same(**properties: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """Property -> its value in each language, turned into language -> properties."""
    return {lang: {name: values[place] for name, values in properties.items()} for place, lang in enumerate(LANGUAGES)}


_ORDER_NAMES = (
    (
        "newest first",
        "oldest first",
        "highest reward",
        "lowest reward",
        "most varied rewards",
        "got worse since a step",
    ),
    (
        "сначала новые",
        "сначала старые",
        "высшая награда",
        "низшая награда",
        "самые разные награды",
        "стало хуже с шага",
    ),
    ("最新优先", "最早优先", "奖励最高", "奖励最低", "奖励差异最大", "自某步后变差"),
    ("최신순", "오래된순", "보상 높은 순", "보상 낮은 순", "보상 편차 큰 순", "특정 스텝 이후 나빠진 것"),
    ("新しい順", "古い順", "報酬の高い順", "報酬の低い順", "報酬のばらつき順", "あるステップ以降に悪化"),
)

LOCALES: dict[str, dict[str, dict[str, Any]]] = {
    "live_run": _same(
        label=("Live view of", "Наблюдение за", "实时查看", "실시간 보기 대상", "ライブ表示の対象"),
        info=(
            "The Board's own run, or the folder of any run, also of one that was started in a shell.",
            "Запуск из этой панели или папка любого запуска, в том числе начатого из командной строки.",
            "本面板启动的运行，或任意运行的目录（包括在命令行中启动的运行）。",
            "이 보드에서 시작한 실행, 또는 셸에서 시작한 것을 포함한 임의의 실행 폴더.",
            "このボードで開始した実行、またはシェルで開始したものを含む任意の実行フォルダ。",
        ),
    ),
    "live_more": _same(label=("More charts", "Другие графики", "更多图表", "그래프 더 보기", "その他のグラフ")),
    "viewer_run": _same(
        label=("Run folder", "Папка запуска", "运行目录", "실행 폴더", "実行フォルダ"),
        info=(
            "A run found under the save folder, or the path of any output_dir.",
            "Запуск, найденный в папке сохранений, или путь к любому output_dir.",
            "保存目录下找到的运行，或任意 output_dir 的路径。",
            "저장 폴더에서 찾은 실행, 또는 임의의 output_dir 경로.",
            "保存フォルダ内の実行、または任意の output_dir のパス。",
        ),
    ),
    "viewer_file": _same(
        label=("Completions", "Ответы", "生成结果", "생성 결과", "生成結果"),
        info=(
            "Of training, or of one of its evaluations.",
            "Обучения или одной из его оценок.",
            "训练的，或其中一次评估的。",
            "훈련 또는 평가의 것.",
            "学習時、または評価時のもの。",
        ),
    ),
    "viewer_first_step": _same(label=("From step", "С шага", "起始步", "시작 스텝", "開始ステップ")),
    "viewer_last_step": _same(label=("To step", "По шаг", "结束步", "끝 스텝", "終了ステップ")),
    "viewer_source": _same(label=("Data set", "Набор данных", "数据集", "데이터 세트", "データセット")),
    "viewer_outcome": _same(label=("Verdict", "Вердикт", "判定", "판정", "判定")),
    "viewer_reward": _same(label=("Reward", "Награда", "奖励", "보상", "報酬")),
    "viewer_min_reward": _same(label=("At least", "Не меньше", "不低于", "최소", "以上")),
    "viewer_max_reward": _same(label=("At most", "Не больше", "不高于", "최대", "以下")),
    "viewer_text": _same(
        label=("Search", "Поиск", "搜索", "검색", "検索"),
        info=(
            "In questions and completions.",
            "В вопросах и ответах.",
            "在问题和生成结果中搜索。",
            "질문과 생성 결과에서 찾습니다.",
            "質問と生成結果から探します。",
        ),
    ),
    "viewer_order": _same(
        label=("Order", "Порядок", "排序", "정렬", "並び順"),
        choices=tuple([*zip(names, ORDERS, strict=True)] for names in _ORDER_NAMES),
    ),
    "viewer_since_step": _same(
        label=(
            "Got worse since step",
            "Стало хуже с шага",
            "自此步后变差",
            "이 스텝 이후 나빠짐",
            "このステップ以降に悪化",
        )
    ),
    "viewer_tokens": _same(
        label=(
            "Colour tokens by log-probability",
            "Раскрасить токены по лог-вероятности",
            "按对数概率为词元着色",
            "로그 확률로 토큰 색칠",
            "対数確率でトークンを色分け",
        ),
        info=(
            "For runs with grpo_log_token_log_probs: true.",
            "Для запусков с grpo_log_token_log_probs: true.",
            "适用于 grpo_log_token_log_probs: true 的运行。",
            "grpo_log_token_log_probs: true 인 실행에만 해당합니다.",
            "grpo_log_token_log_probs: true の実行のみ。",
        ),
    ),
    "viewer_show_btn": _same(value=("Show", "Показать", "显示", "보기", "表示")),
    "viewer_prev_btn": _same(value=("Previous", "Назад", "上一页", "이전", "前へ")),
    "viewer_next_btn": _same(value=("Next", "Вперёд", "下一页", "다음", "次へ")),
    "records_box": _same(
        label=(
            "Records as the model sees them",
            "Записи так, как их видит модель",
            "模型所见的样本",
            "모델이 보는 레코드",
            "モデルから見たレコード",
        )
    ),
    "records_show_btn": _same(
        value=(
            "Show the first records",
            "Показать первые записи",
            "显示前几条样本",
            "처음 레코드 보기",
            "最初のレコードを表示",
        )
    ),
    "records_prev_btn": _same(value=("Previous", "Назад", "上一条", "이전", "前へ")),
    "records_next_btn": _same(value=("Next", "Вперёд", "下一条", "다음", "次へ")),
}
"""Component name -> language -> properties."""
