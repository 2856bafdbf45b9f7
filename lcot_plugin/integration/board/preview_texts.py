# ruff: noqa: RUF001
"""The words of a record's page in the Board's other languages.

In: the words of report.token_view. Out: `words_of`, which its `to_html` takes. Consumer: board.data_preview.
"""

from __future__ import annotations

from lcot_plugin.integration.board.view_texts import LANGUAGES
from lcot_plugin.report.token_view import WORDS


def words_of(lang: str) -> dict[str, str]:
    """Each of WORDS -> its words in that language; English where the language is not the Board's."""
    if lang not in LANGUAGES[1:]:
        return {words: words for words in WORDS}
    place = LANGUAGES.index(lang) - 1
    return {words: TRANSLATED[words][place] for words in WORDS}


TRANSLATED: dict[str, tuple[str, str, str, str]] = {
    "{source}, record {record}": (
        "{source}, запись {record}",
        "{source}，第 {record} 条",
        "{source}, 레코드 {record}",
        "{source}、レコード {record}",
    ),
    "{total} tokens: {parts}": (
        "Токенов: {total}; {parts}",
        "{total} 个词元：{parts}",
        "토큰 {total}개: {parts}",
        "{total} トークン：{parts}",
    ),
    "{count} in the loss": (
        "в функции потерь {count}",
        "{count} 个计入损失",
        "손실에 {count}개",
        "損失に {count}",
    ),
    "{count} of images": ("от изображений {count}", "{count} 个属于图像", "이미지 {count}개", "画像 {count}"),
    "left out: no tokens": (
        "пропущена: токенов нет",
        "被排除：没有词元",
        "제외됨: 토큰 없음",
        "除外：トークンなし",
    ),
    "data set": ("набор данных", "数据集", "데이터 세트", "データセット"),
    "template": ("шаблон", "模板", "템플릿", "テンプレート"),
    "gold": ("эталон", "标准答案", "정답", "正解"),
    "verifier": ("проверка", "校验", "검증", "検証"),
    "finding": ("замечание", "发现", "문제점", "所見"),
    "Question": ("Вопрос", "问题", "질문", "質問"),
    "Thought": ("Рассуждение", "思考", "사고", "思考過程"),
    "Answer": ("Ответ", "回答", "답변", "解答"),
    "The record in its file": ("Запись в файле", "文件中的原始样本", "파일 속 레코드", "ファイル内のレコード"),
    "image {number}": ("изображение {number}", "图像 {number}", "이미지 {number}", "画像 {number}"),
    "{width} x {height} pixels": (
        "{width} x {height} пикселей",
        "{width} x {height} 像素",
        "{width} x {height} 픽셀",
        "{width} x {height} ピクセル",
    ),
    "embedded in the data set": (
        "внутри набора данных",
        "内嵌于数据集",
        "데이터 세트에 포함됨",
        "データセットに内蔵",
    ),
    "Tokens": ("Токены", "词元", "토큰", "トークン"),
    "in the loss": ("в функции потерь", "计入损失", "손실에 포함", "損失に含む"),
    "not in the loss": ("вне функции потерь", "不计入损失", "손실에서 제외", "損失に含まない"),
    "placeholders": ("заполнители", "占位符", "자리 표시자", "プレースホルダー"),
    "point at a token, or tap it, for its id": (
        "наведите на токен или нажмите на него, чтобы увидеть номер",
        "将指针移到词元上或点按，可看到编号",
        "토큰을 가리키거나 누르면 번호가 보입니다",
        "トークンを指すかタップすると番号が出ます",
    ),
}
"""English -> Russian, Chinese, Korean, Japanese."""
