"""Answers out of texts, and when two of them are the same."""

import pytest

from neat_bench.data.answers import extract_choice, extract_letter, same_math

# gold, prediction, whether they agree
PAIRS = [
    ("18", "#### 18", True),
    ("7", "#### 7", True),
    ("7", "7", True),
    ("-103", "-103", True),
    ("-103", "= -103", True),
    ("-103", "103", False),
    ("5", "", False),
    ("5", "no idea", False),
    ("18", "The answer is 18 dollars.", True),
    ("18", "The answer is $18.00", True),
    ("18", "We get 3*6=18. The answer is 18. Then 20 more questions follow\n### Instruction: 5", True),
    ("1000", "The answer is: 1,000", True),
    ("1,234,567", "the answer is 1234567", True),
    ("100,000", "\\boxed{100{,}000}", True),
    ("1000", "The answer is 1,00", False),
    ("0.5", "The answer is 1/2", True),
    ("2/3", "The answer is 2/3", True),
    ("2/3", "The answer is 0.667", False),
    ("3/4", "#### 0.75", True),
    ("\\frac{1}{2}", "The answer is 0.5", True),
    ("\\frac{1}{2}", "so \\boxed{\\frac{1}{2}}.", True),
    ("\\frac{1}{2}", "so \\boxed{\\frac{1}{3}}.", False),
    ("\\dfrac{3}{4}", "\\boxed{.75}", True),
    ("1\\frac{1}{2}", "\\boxed{1.5}", True),
    ("-\\frac{2}{3}", "\\boxed{\\frac{-2}{3}}", True),
    ("50", "The answer is 50%", True),
    ("25\\%", "\\boxed{25}", True),
    ("10\\%", "The answer is 10 percent", True),
    ("-3", "The answer is -3.", True),
    ("-3", "The answer is 3", False),
    ("-5", "The answer is \u22125", True),
    ("0", "The answer is 0.", True),
    ("0", "The answer is -0", True),
    ("8.0", "The answer is 8", True),
    ("15.0", "15", True),
    ("17", "The answer is 17.0", True),
    ("17", "The answer is 17.5", False),
    ("3.14", "3.141", False),
    ("104", "The answer is 104 apples", True),
    ("104", "Answer: 104", True),
    ("3 \\text{ hours}", "The answer is 3 hours", True),
    ("12 \\text{ cm}", "\\boxed{12}", True),
    ("6", "\\boxed{6}\\text{ units}", True),
    ("\\$5", "\\boxed{5}", True),
    ("£195", "The answer is 195", True),
    ("90^\\circ", "\\boxed{90}", True),
    ("\\sqrt{2}", "$\\boxed{\\sqrt{2}}$", True),
    ("11\\sqrt2", "\\boxed{11\\sqrt{2}}", True),
    ("2\\pi", "\\boxed{2\\pi}", True),
    ("10^{5}", "\\boxed{100000}", True),
    ("x^2+1", "\\boxed{1+x^2}", True),
    ("x=4", "\\boxed{4}", True),
    ("5", "x=5 so The answer is: $x = 5$", True),
    ("(1,2)", "\\boxed{(1,2)}", True),
    ("(1,2)", "\\boxed{(2,1)}", False),
    ("[0,1)", "\\boxed{[0,1)}", True),
    ("(-\\infty, 2)", "\\boxed{(-\\infty,2)}", True),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}", True),
    ("\\text{(A)}", "\\boxed{\\text{(A)}}", True),
    ("\\text{even}", "\\boxed{\\text{even}}", True),
    ("\\text{even}", "\\boxed{\\text{odd}}", False),
    ("36", "#### 36\n\n#### 40", False),
    ("72", "Natalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72", True),
    ("12", "12 + 3 = 15", False),
    ("15", "12 + 3 = 15", True),
    ("144", "12^2 = 144", True),
    ("5", "The final answer is $\\boxed{5}$. I hope it is correct.", True),
    ("5", "5\n\n6 + 7 = 13", False),
    ("#### 48", "She sold 48.", True),
    ("The answer is: 48", "48", True),
]


@pytest.mark.parametrize(("gold", "prediction", "agree"), PAIRS)
def test_math_answers(gold, prediction, agree):
    assert same_math(prediction, gold) is agree


def test_there_are_sixty_pairs():
    assert len(PAIRS) >= 60


@pytest.mark.parametrize(("text", "letter"), [
    ("the answer is (B).", "B"),
    ("Answer: C", "C"),
    ("A train goes. So the answer is D", "D"),
    ("It is A", "A"),
    ("(E)", "E"),
    ("I am A fan of it", ""),
    ("The answer is A. The answer is (C).", "C"),
])  # fmt: skip
def test_letters(text, letter):
    assert extract_letter(text) == letter


def test_choices_take_the_first_match_and_the_longer_word():
    answers = ["answer1", "answer2", "answer10"]
    assert extract_choice("the correct answer is answer2, not answer1", answers) == "answer2"
    assert extract_choice("Answer10", answers) == "answer10"
    assert extract_choice("none of them", answers) == ""
    assert extract_choice("TRUE, because", ["true", "false"]) == "true"
