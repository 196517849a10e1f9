"""Which accuracy a set of visual questions defines, by how many answers its questions have."""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd.errors import UserError

VQA_ACCURACY = "vqa_accuracy"  # VQAv2's formula, which is defined for ten annotators
EXACT_MATCH = "exact_match"  # of normal forms, as GQA and sets of medical images with one answer report it
BY_ANSWERS = {10: VQA_ACCURACY, 1: EXACT_MATCH}


def accuracy_name(counts: Mapping[int, int], *, key: str) -> str:
    """The accuracy for questions with these numbers of answers.

    Args:
        counts: questions by the number of their answers, at least one question.
        key: the split, for the message.

    Raises:
        UserError: no accuracy is defined for a number of answers, or the questions differ in it.
    """
    shown = ", ".join(f"{count} with {number}" for number, count in sorted(counts.items()))
    fix = "give every question one answer (exact match), or the answers of ten annotators (VQAv2's accuracy)"
    if any(number not in BY_ANSWERS for number in counts):
        reason = f"no published accuracy is defined for these numbers of answers (questions: {shown})"
        raise UserError(key=key, value="answers", reason=reason, fix=fix)
    if len(counts) != 1:
        reason = f"the questions differ in the number of their answers, so one accuracy cannot cover them (questions: {shown})"
        raise UserError(key=key, value="answers", reason=reason, fix=fix)
    return BY_ANSWERS[next(iter(counts))]
