"""What a user expects of the verifier, pair by pair, most of them measured to be wrong elsewhere."""

from __future__ import annotations

import pytest

from lcot_plugin.rewards import verify
from lcot_plugin.types import Outcome

# Gold answer, then predictions that state it, then predictions that do not.
TABLE: list[tuple[str, list[str], list[str]]] = [
    ("145°", ["145", r"145^\circ", r"$145^{\circ}$", "145 degrees"], ["144", "145%"]),
    ("145", ["145°"], ["-145"]),
    ("50%", ["50", "0.5", r"50\%", "50 percent", "1/2"], ["5000%", "0.5%", "500", "50 cm"]),
    ("50", ["50%"], ["0.5"]),
    ("0.5", [r"50\%", "1/2", ".5"], ["50"]),
    ("5 cm", ["5", "5cm", "50 mm", "0.05 m", r"5\text{ cm}", r"5\,\mathrm{cm}"], ["5 m", "6 cm", "5 cm^2", "5 kg"]),
    ("25 cm^2", ["25 cm²", "25 square centimeters", "25", "0.0025 m^2"], ["25 cm", "25 cm³"]),
    ("60 km/h", ["60", "60 km/h", r"60\text{ km/h}"], ["60 m/s"]),
    ("12:30", ["12:30", "12:30."], ["12:45", "12"]),
    ("3, 2", ["3, 2", "2, 3", "x = 3, x = 2", "3 and 2"], ["7, 2", "3", "2", "3, 2, 1", "3, 3"]),
    (r"2\sqrt{3}", [r"$2\sqrt{3}$", "2*sqrt(3)", "2√3", r"\sqrt{12}"], ["2", "3", r"2\sqrt{5}", r"3\sqrt{2}"]),
    ("2", [r"\sqrt{4}"], [r"2\sqrt{3}"]),
    (r"2\sqrt{3} cm", ["2√3", r"2\sqrt{3}\text{ cm}"], [r"2\sqrt{3} m"]),
    ("(2,3)", ["(2, 3)", r"\left(2,3\right)", "(2, 6/2)"], ["(2,9)", "(3,2)", "[2,3]", "2"]),
    (r"[2,\infty)", ["[2,∞)"], [r"(2,\infty)", "[2,3)"]),
    ("1/2", ["2/4", "0.5", r"\frac{1}{2}", r"\dfrac12", "½"], ["1", "2", "1/3"]),
    (r"$30^\circ$", [r"$\frac{\pi}{6}$", "π/6", "30"], [r"\frac{\pi}{3}", r"30\pi"]),
    (r"\frac{\pi}{6}", ["30°"], ["60°", "30"]),
    ("-2", ["\N{MINUS SIGN}2", "- 2"], ["2"]),
    ("-5", ["- 5", "$-5$"], ["5"]),
    ("1e3", ["1000", r"1\times 10^3", "10^3"], ["13", "1"]),
    ("1000", ["1,000", "1{,}000", "1e3", r"1\,000", "1 000"], ["1,001", "1"]),
    (
        "5",
        ["答案是5厘米", "5厘米", "x = 5", "5 apples", r"\boxed{5\text{ cm}}"],
        ["5 million", "x = 5 or x = 6", "five or 5"],
    ),
    ("3.5", ["3½", r"3\frac{1}{2}", "3 1/2", "7/2"], ["3", "31/2"]),
    ("1/3", ["0.333333"], ["0.3", "0.333334"]),
    ("12345678", ["12,345,678"], ["12345679"]),
    (r"\frac{12}{3}", ["4"], [r"\frac{12}{5}"]),
    ("8", ["2^3", "2**3", "4!/3"], ["2^4"]),
    ("123", ["123"], ["1 2 3", "12 3"]),
    ("pi", [r"\pi", "π"], ["3.14"]),
    ("sin(x)", [r"\sin x"], [r"\cos x"]),
    (r"36\pi \text{ cm}^2", ["36π", r"36\pi"], [r"36\pi \text{ cm}", r"6\pi"]),
    ("x=1, y=2", ["y=2, x=1", "x=1,y=2"], ["x=2, y=1"]),
    (r"\{1,2,3\}", ["{3, 2, 1}"], ["{1, 2}", "{1, 2, 4}"]),
    ("(1,2),(3,4)", ["(3,4), (1,2)"], ["(2,1),(3,4)"]),
    ("y = 2x + 1", ["2x+1", "y=1+2x"], ["y = 2x + 2"]),
    ("90 min", ["1.5 hours", "90"], ["90 hours"]),
    ("$1,200", ["1200", r"\$1,200.00"], ["1", "200"]),
    ("C. elegans", ["C. elegans"], ["C. difficile", "C"]),
    ("x+1", ["1+x", "x + 1"], ["x", "x-1"]),
    ("x > 5", ["5 < x"], ["x > 4", "x < 5"]),
    ("B2", ["B2"], ["2B"]),
    ("10-12", ["10-12", "10–12"], ["-2"]),  # noqa: RUF001
    (
        "B",
        [
            "B",
            "B. 5 cm",
            "(B)",
            "**B**",
            r"\boxed{B}",
            "B) 5 cm",
            "Answer: (B)",
            r"\text{B}",
            r"\boxed{\text{(B)}}",
            "Option B",
            "The answer is **B**.",
            "The correct answer is B. Paris",
            "b)",
            "B is the correct answer",
            "答案是B",
        ],
        ["C", "(A) or (B)", "A. B or C", "Both", "B, C", "Because"],
    ),
    ("(B)", ["B"], ["A"]),
    ("A", ["A", r"\boxed{a}"], ["A triangle has area 5", "A big B", "Apple"]),
    ("A, C", ["A, C", "C and A"], ["A", "A, D"]),
    ("yes", ["Yes", "Yes, it is.", "**yes**", "true"], ["no", "yes and no", "maybe yes"]),
    ("red", ["Red.", "the red", r"\text{red}"], ["blue", "not red", "redder"]),
]
RIGHT = [(gold, prediction) for gold, right, _ in TABLE for prediction in right]
WRONG = [(gold, prediction) for gold, _, wrong in TABLE for prediction in wrong]


@pytest.mark.parametrize(("gold", "prediction"), RIGHT)
def test_right_answers_match(gold: str, prediction: str) -> None:
    assert verify(prediction, gold).outcome is Outcome.MATCHED


@pytest.mark.parametrize(("gold", "prediction"), WRONG)
def test_wrong_answers_do_not(gold: str, prediction: str) -> None:
    assert verify(prediction, gold).outcome in (Outcome.MISMATCHED, Outcome.UNPARSABLE)


@pytest.mark.parametrize("gold", [gold for gold, _, _ in TABLE])
def test_every_gold_answer_matches_itself(gold: str) -> None:
    assert verify(rf"<think>\boxed{{wrong}}</think> \boxed{{{gold}}}", gold).matched
    assert verify(f"<answer>{gold}</answer>", gold).matched
