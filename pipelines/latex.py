"""A comparison as a table for a paper: booktabs, and nothing else."""

import math

from training.compare import Comparison, Difference, Score

TITLES = {
    "mae": "MAE",
    "corr": "Corr",
    "acc2_has0": "Acc-2 (has0)",
    "acc2_non0": "Acc-2 (non0)",
    "f1_has0": "F1 (has0)",
    "f1_non0": "F1 (non0)",
    "acc7": "Acc-7",
    "acc5": "Acc-5",
    "acc3": "Acc-3",
    "accuracy": "Acc",
    "uar": "UAR",
    "f1_weighted": "W-F1",
    "f1_macro": "M-F1",
    "f1_micro": "m-F1",
}
LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{char: f"\\{char}" for char in "&%$#_"},
}


def latex(found: Comparison) -> str:
    """A table with a row for each model and a column for each metric.

    The best mean of a column is bold. Stars tell how sure it is that a model differs from the first
    one, after Holm. It needs the package booktabs, and compiles with any LaTeX.
    """
    metrics, reference = list(found.better), next(iter(found.scores))
    differences = {(each.name, each.metric): each for each in found.differences}
    seeds = any(len(score.values) > 1 for row in found.scores.values() for score in row.values())
    heads = [f"{escaped(TITLES.get(name, name))} {_arrow(found, name)}" for name in metrics]
    rows = [
        [
            escaped(name),
            *(
                _cell(
                    score, differences.get((name, metric)), best=_is_best(found, metric, score.mean)
                )
                for metric, score in by_metric.items()
            ),
        ]
        for name, by_metric in found.scores.items()
    ]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_caption(found, reference, seeds=seeds)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}",
            r"\toprule",
            _line(["Model", *heads]),
            r"\midrule",
            *map(_line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escaped(text: str) -> str:
    """Text as LaTeX shows it, whatever it holds.

    What pdfLaTeX has no letter for is told by its number.
    """
    return "".join(_ESCAPED.get(char, char if _is_shown(char) else _number(char)) for char in text)


def _is_shown(char: str) -> bool:
    """Whether pdfLaTeX's own fonts have it: ASCII, and letters of western Europe."""
    return " " <= char <= "~" or (char.isalpha() and "\xc0" <= char <= "\xff")


def _number(char: str) -> str:
    return " " if char.isspace() else f"[U+{ord(char):04X}]"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _arrow(found: Comparison, metric: str) -> str:
    return r"$\uparrow$" if found.better[metric] == "higher" else r"$\downarrow$"


def _cell(score: Score, difference: Difference | None, *, best: bool) -> str:
    if not math.isfinite(score.mean):
        return "--"
    mean = f"{score.mean:.3f}"
    text = rf"\mathbf{{{mean}}}" if best else mean
    if math.isfinite(score.deviation):
        text += rf" \pm {score.deviation:.3f}"
    stars = "" if difference is None else _stars(difference.corrected)
    return f"${text}^{{{stars}}}$" if stars else f"${text}$"


def _stars(p: float) -> str:
    return next((stars for level, stars in LEVELS if p <= level), "")


def _is_best(found: Comparison, metric: str, mean: float) -> bool:
    means = [by_metric[metric].mean for by_metric in found.scores.values()]
    finite = [value for value in means if math.isfinite(value)]
    if len(finite) < 2:
        return False
    return mean == (max(finite) if found.better[metric] == "higher" else min(finite))


def _caption(found: Comparison, reference: str, *, seeds: bool) -> str:
    told = f"{found.count} test clips"
    if seeds:
        told += "; mean and standard deviation over seeds"
    if not found.differences:
        return f"{told}."
    levels = ", ".join(rf"$^{{{stars}}}$~$p \le {level}$" for level, stars in reversed(LEVELS))
    return (
        f"{told}. {levels} against {escaped(reference)}: paired bootstrap over clips "
        f"({found.draws} draws), Holm-corrected over {len(found.differences)} comparisons."
    )
