"""The kind `expression`: what is mathematics, what is text, and which answers are equal."""

from __future__ import annotations

import pytest

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.algebra import formula, looks_like_expression, split_assignment, split_unit
from lcot_plugin.rewards.kinds.units import UNITS
from lcot_plugin.rewards.mathematics.expressions import MathVerifySolver
from lcot_plugin.types import MatchSettings, Outcome

SOLVER = MathVerifySolver()
# Kind, gold answer, answer.
RIGHT = [
    ("auto", r"\frac{-1\pm\sqrt{5}}{2}", r"\frac{-1-\sqrt5}{2}, \frac{-1+\sqrt5}{2}"),
    ("auto", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "(1,2,3)"),
    ("auto", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    ("expression", "5", "5"),
    ("expression", "x^2", "x*x"),
    ("auto", "H_2O", "H2O"),
    ("auto", "H_2O", r"\text{H}_2\text{O}"),
    ("auto", "H_2O", "H₂O"),
    ("auto", "H2O", "H₂O"),
    ("auto", "y = 2x + 1", "f(x) = 2x+1"),
    ("auto", r"f^{-1}(x)=\frac{x-1}{2}", r"\frac{x-1}{2}"),
    ("auto", r"2\sqrt{3}", r"2\sqrt{3}\text{ units}"),
    ("auto", r"x=\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}"),
    ("auto", r"\frac{\sqrt2}{2}", r"x = \frac{1}{\sqrt2}"),
    ("auto", "x^2+1", "x^2+1 = 1+x^2"),
    ("auto", r"36\pi", r"A = \pi r^2 = 36\pi"),
    ("auto", r"A = \pi r^2", r"\pi r^2"),
    ("auto", "3x - 2y = 6", r"y = \frac{3}{2}x - 3"),
    ("auto", r"\frac{x^2}{9} + \frac{y^2}{4} = 1", "4x^2+9y^2=36"),
    ("auto", r"2\sqrt{3}", "3.464102"),
    ("auto", "3+2i", "2i+3"),
    ("auto", r"\frac{1}{2}\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}0.5\\1\end{pmatrix}"),
    ("auto", "e^{x}", "exp(x)"),
    ("auto", r"\log_{10} 5", r"\log 5"),
    ("auto", "1000000", "10^6"),
    ("auto", "3:4", "3:4"),
    ("auto", r"\frac{dy}{dx} = 2x", "2x"),
    ("auto", r"0.\overline{3}", r"\frac13"),
    ("auto", "1/3", r"0.\overline{3}"),
    ("auto", "1/3", "0.333..."),
    ("auto", "(x-1)(x+2)", "x^2+x-2"),
    ("auto", r"\frac{\pi}{3} + 2k\pi", r"2k\pi + \frac{\pi}{3}"),
    ("auto", "x=2", "2"),
    ("auto", "(x-1)^2+(y-2)^2=9", "x^2+y^2-2x-4y-4=0"),
    ("auto", "2^{10}", "1024"),
    ("auto", "1024", "2^{10}"),
    ("auto", r"\int_0^1 x dx", r"\frac12"),
    ("auto", r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    ("auto", r"2\sqrt{3} cm", r"2\sqrt{3}"),
    ("auto", r"2\pi", r"360^\circ"),
    ("auto", r"\emptyset", r"\varnothing"),
    ("auto", r"2x+3y \le 6", r"6 \ge 2x + 3y"),
    ("auto", r"2x+3y \le 6", r"-2x-3y \ge -6"),
    ("auto", "(a) 3 (b) 4", "(a) 3, (b) 4"),
    ("auto", r"\frac{1}{3}\pi r^2 h", r"\frac{\pi r^2 h}{3}"),
    ("auto", r"2H_2 + O_2 \rightarrow 2H_2O", "O_2 + 2H_2 → 2H_2O"),
    ("auto", r"\frac{kQq}{r^2}", "kQq/r^2"),
    ("auto", "①③", "①、③"),
    ("auto", "①③", "③①"),
    ("auto", "2-2p", "-2(p-1)"),
    ("auto", r"\frac{3x}{7}+\frac{2}{7}", r"\frac{3x+2}{7}"),
    ("auto", "(x+2)^2+(y-3)^2", "x^2+y^2+4x-6y+13"),
    ("auto", r"\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    ("auto", "x^{2/3}", r"\sqrt[3]{x^2}"),
    ("auto", r"21\frac{1}{4}", "21.25"),
    ("auto", r"\frac{\sqrt{505}}{7}", r"\frac{1}{7}\sqrt{505}"),
    ("auto", "6+9i", r"6 + 9\mathrm{i}"),
    ("auto", r"3\pi\text{ square units}", r"3\pi"),
    ("auto", r"10\sqrt{3}+5\sqrt{2}\text{ meters}", r"5\sqrt{2}+10\sqrt{3}"),
    ("auto", r"\frac{1}{2}ab\sin C", r"\frac{ab \sin C}{2}"),
    ("auto", r"y = -\frac{2}{3}x + 4", "2x+3y-12=0"),
    ("auto", r"\sqrt{\frac{2}{3}}", r"\frac{\sqrt{6}}{3}"),
    ("auto", r"\cos\theta", r"\cos(\theta)"),
    ("auto", "2^{n-1}", r"\frac{2^n}{2}"),
    ("auto", r"\frac{4}{x-1}", "4/(x-1)"),
    ("auto", r"-\frac{b}{2a}", r"\frac{-b}{2a}"),
    ("auto", "mgh", "mgh"),
    ("auto", r"\frac{1}{2}mv^2", "0.5mv^2"),
    ("auto", r"\tan^2\theta", r"\sec^2\theta - 1"),
    ("auto", r"\ln\left(\frac{x}{y}\right)", r"\ln x - \ln y"),
    ("auto", r"\frac{\pi}{2}-1", r"\frac{\pi-2}{2}"),
    ("auto", "3:4", "3 : 4"),
    ("auto", "a^2b", r"a^{2} \cdot b"),
    ("auto", r"\text{Monday}", "Monday"),
    ("auto", "f(x) = x^2 - 1", "x^2-1"),
    ("auto", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\langle 1, 2\rangle"),
    ("auto", "-x^2+4", "4 - x^{2}"),
    ("auto", r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"),
    ("auto", r"5\sqrt[3]{2}", r"\sqrt[3]{250}"),
    ("auto", r"\arcsin\frac{1}{2}", r"\frac{\pi}{6}"),
    ("auto", r"e^{2\ln 3}", "9"),
    ("auto", "(x-1)(x-2)=0", "x^2-3x+2=0"),
    ("auto", r"\\dfrac{1}{2}+\frac{1}{72}", r"\tfrac12 +\! \frac1{72}"),
    ("auto", "2=x", "2"),
    ("auto", "2a = y", "2a"),
    ("auto", "|AB|=1", "1"),
    ("auto", r"AB = 5\sqrt{2}", r"5\sqrt2"),
    ("auto", r"5\sqrt{2}", r"|AB| = 5\sqrt2"),
    ("auto", r"\frac{NO}{BO}=\frac{1}{\sqrt6}", r"\frac{1}{\sqrt{6}}"),
    ("auto", "A:B=1", "1"),
    ("auto", r"P(X=2)=\frac{1}{3}", "1/3"),
    ("auto", r"P(\{2\})=1/6", r"\frac16"),
    ("auto", "S_{MBCN}:S=7:32", "7:32"),
    ("auto", "V_{1}:V_{2}=11:21", "11:21"),
    ("auto", r"I(t)=I(0)e^{-\frac{t}{RC}}", r"I(0)e^{-\frac{t}{RC}}"),
    ("auto", r"\Phi (x,y)=\frac{x+1}{2y}", r"\Phi(x, y)=\frac{x}{2y}+\frac{1}{2y}"),
    ("auto", "s(t) = 2t", "s = 2t"),
    ("auto", r"\Delta p\approx -\frac{\hbar \omega_{L}}{c}", r"-\frac{\omega_L \hbar}{c}"),
    ("auto", r"n_{\gamma}(\nu)=A R_{\odot}^2 e^{-\nu/T_{\mathrm{s}}}", r"A e^{-\frac{\nu}{T_s}} R_\odot^2"),
    ("auto", r"\frac{\sqrt3}{3} \approx 0.577", r"\frac{1}{\sqrt3}"),
    ("auto", r"\frac{\sqrt3}{3}", r"\frac{\sqrt3}{3} \approx 0.577"),
    ("auto", r"\sqrt{2}", r"x = \sqrt2 \approx 1.41"),
    ("auto", r"\sqrt{2}", "1.4142135623730951"),
    ("auto", r"\pi", r"\approx \pi"),
    ("auto", "sin(theta)", r"\sin(\theta)"),
    ("auto", r"\infty", "infinity"),
    ("auto", r"17 \bmod 5", "2"),
    ("auto", "2", r"17 \bmod 5"),
    ("auto", r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}", r"F_n = \sum_{k=0}^{n-1} F_{n-k-1} F_k"),
    ("auto", "6j+7k", r"6\,\mathit{\vec j}+7\,\mathit{\vec k}"),
    ("auto", r"3\hat{i}-2\hat{\jmath}", "3i-2j"),
    ("auto", "2π cm^2", "2*pi cm^2"),
    ("auto", r"\sqrt{2} m", r"100\sqrt{2} cm"),
    ("auto", "0.64N", "0.6400 N"),
    ("auto", "v^2_0/g", r"\frac{v_0^2}{g}"),
    ("auto", "185\\", "185"),
    ("auto", r"\frac{GMm}{r^2}", "GMm/r^2"),
    ("auto", r"\frac{GMm}{r^2}", r"F=\frac{GMm}{r^2}"),
    ("auto", r"\frac{GMm}{r^2}", r"F=G\frac{mM}{r^2}"),
    ("auto", r"\frac{BLv}{R}", "BLv/R"),
    ("auto", r"\frac{BLv}{R}", r"I=\frac{BLv}{R}"),
    ("auto", r"\frac{mg}{k}", "mgk^{-1}"),
    ("expression", "ab", "ba"),
]
WRONG = [
    ("auto", r"\frac{GMm}{r^2}", "GMm/r"),
    ("auto", r"\frac{BLv}{R}", "BLR/v"),
    ("auto", r"\frac{mg}{k}", "mkg^{-1}"),
    ("auto", "WiFi", "FiWi"),
    ("auto", "USA", "SUA"),
    ("auto", "DNA", "AND"),
    ("auto", "CO2", "OC2"),
    ("auto", "McDonald", "DonaldMc"),
    ("auto", "iPhone 12", "Phonei 12"),
    ("auto", "DVDs/CDs", "CDs/DVDs"),
    ("expression", "ab", "ac"),
    ("auto", "ab", "ba"),
    ("auto", r"\frac{-1\pm\sqrt{5}}{2}", r"\frac{1-\sqrt5}{2}, \frac{1+\sqrt5}{2}"),
    ("auto", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "(1,3,2)"),
    ("auto", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&3\\2&4\end{bmatrix}"),
    ("auto", "CO_2", "Co_2"),
    ("auto", r"f^{-1}(x)=\frac{x-1}{2}", r"f(x)=\frac{x-1}{2}"),
    ("auto", "x^2+1", "x^2+1 = 2+x^2"),
    ("auto", r"A = \pi r^2", r"V = \pi r^2"),
    ("auto", "3x - 2y = 6", r"y = \frac{3}{2}x + 3"),
    ("auto", r"2\sqrt{3}", r"2\sqrt{3} or 3\sqrt{2}"),
    ("auto", "x+1", "x+1, x-1"),
    ("auto", r"2\sqrt{3}", "3.46"),
    ("auto", r"\frac{1}{2}", r"\frac{1}{3}"),
    ("auto", "x^2+2x+1", "x^2+2x"),
    ("auto", "2x", "x^2"),
    ("auto", r"\sqrt{2}", "1.414"),
    ("auto", r"\pi", r"\frac{22}{7}"),
    ("auto", r"\pi", "3.1416"),
    ("auto", "e^x", "x^e"),
    ("auto", r"\log_2 x", r"\log_3 x"),
    ("auto", r"\sin x", r"\sin 2x"),
    ("auto", r"\sin x", r"-\sin x"),
    ("auto", r"\sin^2 x", r"\sin x^2"),
    ("auto", "a+b", "a-b"),
    ("auto", "x_1", "x_2"),
    ("auto", "2R", "2r"),
    ("auto", "y=2x+1", "x=2y+1"),
    ("auto", "y=2x+1", "2x"),
    ("auto", "x^2+y^2=1", "x^2-y^2=1"),
    ("auto", "x^2+y^2=1", "1"),
    ("auto", "x^2=4", "x=2"),
    ("auto", "(x-1)^2+(y-2)^2=9", "(x+1)^2+(y+2)^2=9"),
    ("auto", "(x-1)^2+(y-2)^2=9", "(x-1)^2+(y-2)^2=3"),
    ("auto", r"\frac{a}{b}", r"\frac{b}{a}"),
    ("auto", r"3\sqrt{2}", r"2\sqrt{3}"),
    ("auto", r"3\sqrt{2}", r"\sqrt[3]{2}"),
    ("auto", "2^{10}", "2^{11}"),
    ("auto", "10^{-3}", "10^3"),
    ("auto", "i", "-i"),
    ("auto", "1+i", "1-i"),
    ("auto", "|x|", "x"),
    ("auto", r"\vec{a}", r"\vec{b}"),
    ("auto", "f'(x)", "f(x)"),
    ("auto", r"\lim_{x\to 0} \frac{\sin x}{x}", "0"),
    ("auto", r"\int_0^1 x dx", "1"),
    ("auto", "H_2O", "H_2O_2"),
    ("auto", "CO_2", "CO"),
    ("auto", "x+C", "x"),
    ("auto", "n!", "(n+1)!"),
    ("auto", "2n+1", "2n-1"),
    ("auto", "(-1)^n", "1"),
    ("auto", r"\binom{n}{2}", "n^2"),
    ("auto", r"\sqrt{x^2}", "x"),
    ("auto", r"2\sqrt{3} cm", r"2\sqrt{3} cm^2"),
    ("auto", r"2\pi", "2"),
    ("auto", r"2\pi", "360"),
    ("auto", r"\frac{x}{2}", "x2"),
    ("auto", "5x", "5"),
    ("auto", "5x", "x"),
    ("auto", "5", "5x"),
    ("auto", "12", "1 2"),
    ("auto", "0.5", r"\frac{5}{100}"),
    ("auto", r"\infty", "8"),
    ("auto", r"\infty", r"-\infty"),
    ("auto", r"\emptyset", "0"),
    ("auto", r"x \ge 2", r"x \le 2"),
    ("auto", r"2x+3y \le 6", "2x+3y < 6"),
    ("auto", r"2x+3y \le 6", r"-2x-3y \le -6"),
    ("auto", "(a) 3 (b) 4", "(a) 4 (b) 3"),
    ("auto", r"2H_2 + O_2 \rightarrow 2H_2O", "H_2 + O_2 → H_2O"),
    ("auto", "2x+3y=6", "6"),
    ("auto", "①③", "①②"),
    ("auto", "①③", "13"),
    ("auto", "2^{2^{n}}", "4^{n}"),
    ("auto", r"\frac{n(n+1)}{2}", r"\frac{n^2}{2}"),
    ("auto", "xy=6", "6"),
    ("auto", "x+y=6", "6"),
    ("auto", r"\frac{y}{x}=2", "2"),
    ("auto", "|x|=2", "2"),
    ("auto", "2=x", "3"),
    ("auto", r"P(X=2)=\frac{1}{3}", "P(X=3)=1/3"),
    ("auto", r"P(X=2)=\frac{1}{3}", "2"),
    ("auto", "x=y", "x+y"),
    ("auto", "|AB|=1", "|CD|=1"),
    ("auto", r"\frac{NO}{BO}=\frac{1}{\sqrt6}", r"\frac{AO}{BO}=\frac{1}{\sqrt6}"),
    ("auto", "S_1:S_2=7:32", "32:7"),
    ("auto", "I(t)=I(0)e^{-t}", "I(0)e^{t}"),
    ("auto", "I(0)e^{-t}", "I(0)e^{t}"),
    ("auto", r"\phi(0)x", r"\phi(0)y"),
    ("auto", "f(x)=2x", "f(x)=3x"),
    ("auto", r"\frac{\sqrt3}{3} \approx 0.567", r"\frac{\sqrt3}{3}"),
    ("auto", r"\frac{\sqrt3}{3}", r"\frac{\sqrt3}{3} \approx 0.567"),
    ("auto", r"\frac{\sqrt3}{3}", r"\frac{\sqrt2}{3} \approx 0.577"),
    ("auto", r"\frac{\sqrt3}{3}", "0.577"),
    ("auto", r"\sqrt{2}", "1.4142135623730961"),
    ("auto", r"\infty", "-infinity"),
    ("auto", "3", r"17 \bmod 5"),
    ("auto", "2", r"17+0 \bmod 5"),
    ("auto", "17", r"17 \bmod 5"),
    ("auto", r"\sum_{k=0}^{n} F_k F_{n-k}", r"\sum_{k=0}^{n} F_k F_{n-k-1}"),
    ("auto", r"\prod_{k=1}^{n} a_k", r"\sum_{k=1}^{n} a_k"),
    ("auto", "6j+7k", r"6\vec j-7\vec k"),
    ("auto", r"5\vec j + j", "6j"),
    ("auto", "3+4i", r"3+4\vec{i}"),
    ("auto", r"\sqrt{2} m", r"\sqrt{2} cm"),
    ("auto", r"\sqrt{2} m", r"100\sqrt{2} s"),
    ("auto", "0.64N", "0.65 N"),
    ("auto", "0.64N", "0.64 m"),
    ("auto", "52", "5₂"),
    ("auto", "12", "①②"),
    ("auto", r"\Delta x", r"\Delta y"),
]
TEXTS = [
    "iPhone 12", "B-52", "COVID-19", "E. coli", "3D", "C++", "A+", "B-", "N/A", "T/F", "24/7", "2nd", "21st", "4K",
    "5G", "GPT-4", "R2-D2", "U.S.", "Jan 5", "Mr. 5", "No. 5", "A4", "v2.0", "Boeing 747", "Route 66", "UN", "USA",
    "AB", "O+", "O-", "AB-", "p53", "x86", "Type 2", "Fig. 3", "9/11", "10-12", "2020-01-05", "12:30", "John",
    "New York", "red, green", "cat", "to be", "e-mail", "T-shirt", "X-ray", "NaCl", "Na+", "10 Downing Street", "yes",
    "none", "Q&A", "C#", ".net", "M&M", "AC/DC", "5 apples", "3x3", "4x4", "1080p", "2:1", "50-50", "50/50",
    "+1-555-1234", "192.168.0.1", "A and B", "100% sure", "$5", "Mar 3, 2020", "3rd floor", "left", "a b c", "to",
    "is", "by", "PM2.5", "B12", "vitamin B12", "OK", "1 in 5", "1 of 3", "AAPL", "foo_bar", "F-16", "II", "IV", "XII",
    "Henry VIII", "Chapter 3", "p. 5", "5 o'clock", "Room 2B", "2B", "Gate A", "(a)", "AUG", "Au", "He", "He-3",
    "U-235", "C-14", "DNA", "K-pop", "Wi-Fi", "3-2", "won 3-2", "7-Eleven", "20s", "1990s", "1st place", "No", "no 5",
    "f(x)", "P(A)", "sin", "max", "log", "exp", "min", "abs",
]  # fmt: skip
MATHEMATICS = [
    "x+1", "2x", r"2\sqrt{3}", "sin x", r"\sin x", "sin(x)", "ln x", "pi", "π", "x^2", "a/b", "3x-2", "x=5", "y=2x+1",
    "f(x)=x^2", "x>5", "(x+1)(x-1)", "2^n", "n!", r"\lvert x\rvert", r"\frac{1}{2}", "sqrt(2)", "√2", "2√3", "e^x",
    "x_1+x_2", "y'=2x", "2i+3", r"\vec{a}", r"\alpha", "θ/2", "-x", "n-1", "x-1", "1/x", "2/3 x", "2πr", "πr", "ab+c",
    "2sinx", "xyz+1", "abc^2", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\infty", "∞", "5!", "10^{-3}", "log_2 8",
    "mc^2", "E=mc^2", "F=ma", "v = u + at", "1 - x", "N(N-1)/2", "2ab", "x(x+1)", "P(A) = 0.5", r"\int x dx",
    r"\sum_{i=1}^n i", r"A \cap B", r"2k\pi",
]  # fmt: skip


def outcome(answer: str, gold: str, answer_type: str = "auto") -> Outcome:
    reading = read_gold(gold, answer_type)
    assert reading is not None
    return judge(reading, Found(answer, Place.BOXED), solver=SOLVER)


@pytest.mark.parametrize(("answer_type", "gold", "answer"), RIGHT)
def test_right_answers_match(answer_type: str, gold: str, answer: str) -> None:
    assert outcome(answer, gold, answer_type) is Outcome.MATCHED


@pytest.mark.parametrize(("answer_type", "gold", "answer"), WRONG)
def test_wrong_answers_do_not(answer_type: str, gold: str, answer: str) -> None:
    assert outcome(answer, gold, answer_type) in (Outcome.MISMATCHED, Outcome.UNPARSABLE)


@pytest.mark.parametrize(("answer_type", "gold"), sorted({(row[0], row[1]) for row in RIGHT + WRONG}))
def test_every_gold_answer_matches_itself(answer_type: str, gold: str) -> None:
    assert outcome(gold, gold, answer_type) is Outcome.MATCHED


@pytest.mark.parametrize("text", TEXTS)
def test_words_and_codes_are_no_mathematics(text: str) -> None:
    assert not looks_like_expression(text)


@pytest.mark.parametrize("text", MATHEMATICS)
def test_mathematics_is(text: str) -> None:
    assert looks_like_expression(text)


def test_names_and_units_around_an_expression() -> None:
    assert split_assignment("x_1 = 2a") == ("x_1", "2a")
    assert split_assignment("f(x) = 2x") == ("f(x)", "2x")
    assert split_assignment("x = y = 2") == ("", "x = y = 2")
    assert split_unit(r"2\sqrt{3} cm") == (r"2\sqrt{3}", UNITS["cm"])
    assert split_unit(r"\sin 60^\circ") == (r"\sin 60°", None)
    assert split_unit("x + y") == ("x + y", None)


def test_chemical_formulas() -> None:
    assert formula(r"\text{H}_2\text{O}") == formula("H2O") == "H2O"
    assert formula("Fe^{3+}") == formula(r"\mathrm{Fe}^{3+}") == "Fe3+"
    assert formula("x_2") is None
    assert formula("AB") is None


def test_a_tolerance_holds_for_expressions() -> None:
    settings = MatchSettings(relative_tolerance=0.01)
    gold = read_gold(r"2\sqrt{3}", "auto", settings)
    assert gold is not None
    assert judge(gold, Found("3.46", Place.BOXED), settings, SOLVER) is Outcome.MATCHED
    assert judge(gold, Found("3.4", Place.BOXED), settings, SOLVER) is Outcome.MISMATCHED
    assert judge(gold, Found("x", Place.BOXED), settings, SOLVER) is not Outcome.MATCHED
