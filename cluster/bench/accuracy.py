"""Accuracy runs: LoadGen's accuracy log against the samples' references, by the workload's metric."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...models.errors import EngineError, StateError
from .loadgen_log import ACCURACY
from .made_sets import is_right_sum
from .record import AccuracyFacts
from .rules import Gate
from .samples import SampleSet

# How often each question of a GPT-OSS subset is asked: a subset counts by its questions, not by its repeats.
_GPT_OSS_REPEATS = {"aime": 8, "gpqa": 5, "livecodebench": 3}

Decode = Callable[[Sequence[int]], str]
Answers = dict[int, list[int]]


def read_answers(directory: Path) -> Answers:
    """Token ids by sample, out of LoadGen's accuracy log.

    Raises:
        EngineError: there is none, or it is damaged.
    """
    path = directory / ACCURACY
    try:
        entries = json.loads(path.read_text())
        return {
            int(entry["qsl_idx"]): np.frombuffer(bytes.fromhex(entry["data"]), np.int32).tolist()
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path}: LoadGen's accuracy log cannot be read: {error}") from None


def judge(gate: Gate, samples: SampleSet, answers: Answers, decode: Decode, logs: str) -> AccuracyFacts:
    """
    Raises:
        StateError: nfold cannot judge this metric.
    """
    if gate.metric == "exact":
        scores = _exact(samples, answers, decode)
    elif gate.metric == "rouge":
        scores = _rouge(samples, answers, decode)
    elif gate.metric == "exact_match":
        scores = _gpt_oss(samples, answers, decode)
    else:
        raise StateError(f"nfold does not measure {gate.metric}")
    misses = gate.misses(scores)
    if unjudged := _unjudged(samples) if gate.metric == "exact_match" else []:
        misses.append(f"nfold does not judge {', '.join(unjudged)}; MLCommons' evaluation takes the accuracy log")
    if len(answers) < len(samples):
        misses.append(f"{len(samples) - len(answers)} of {len(samples)} samples were not answered")
    return AccuracyFacts(
        metric=gate.metric,
        scores=scores,
        at_least=dict(gate.at_least),
        at_most=dict(gate.at_most),
        misses=misses,
        gate=gate.source,
        num_samples=len(samples),
        logs=logs,
    )


def _exact(samples: SampleSet, answers: Answers, decode: Decode) -> dict[str, float]:
    right = sum(is_right_sum(decode(ids), samples.references[row]) for row, ids in answers.items())
    return {"exact": right / len(samples)}


def _rouge(samples: SampleSet, answers: Answers, decode: Decode) -> dict[str, float]:
    """Mean F-measures, in percent, with stemming, as the reference evaluates; mean tokens of the answers."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    sums = dict.fromkeys(names, 0.0)
    for row, ids in answers.items():
        scored = scorer.score(samples.references[row].strip(), decode(ids).strip())
        for name in names:
            sums[name] += 100.0 * scored[name].fmeasure
    count = max(len(answers), 1)
    tokens = sum(map(len, answers.values()))
    return {name: total / count for name, total in sums.items()} | {"tokens_per_sample": tokens / count}


def _gpt_oss(samples: SampleSet, answers: Answers, decode: Decode) -> dict[str, float]:
    """Percent of questions answered right, by subset and over all.

    LiveCodeBench's answers are programs, and the tests that these must pass are not in the accuracy set: they come
    with LiveCodeBench's own code, which runs them. nfold does neither, so with them in the set there is no
    `exact_match` over all, and the gate is not passed.
    """
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    for row, subset in enumerate(samples.subsets):
        name = _set_of(subset)
        asked[name] = asked.get(name, 0) + 1
        if row in answers and name in _JUDGES:
            right[name] = right.get(name, 0) + _JUDGES[name](decode(answers[row]), samples.references[row])
    scores = {name: 100.0 * right.get(name, 0) / asked[name] for name in asked if name in _JUDGES}
    if all(name in _JUDGES for name in asked):
        weights = {name: num / _GPT_OSS_REPEATS[name] for name, num in asked.items()}
        whole = sum(weights.values())
        scores["exact_match"] = sum(scores[name] * weights[name] for name in asked) / whole
    return scores


def _set_of(subset: str) -> str:
    return next((known for known in _GPT_OSS_REPEATS if known in subset), subset)


def _unjudged(samples: SampleSet) -> list[str]:
    return sorted({_set_of(subset) for subset in samples.subsets} - _JUDGES.keys())


def final_section(text: str) -> str:
    """What the model says in its final channel, or everything when it has none."""
    parts = re.split(r"<\|channel\|>final[^<]*<\|message\|>", text)
    return parts[-1].partition("<|return|>")[0].strip() if len(parts) > 1 else text.strip()


def _is_right_choice(text: str, reference: str) -> bool:
    said = final_section(text).replace("**", "")
    match = re.match(r"[^a-zA-Z]*([A-D])(?![a-zA-Z])", said, re.IGNORECASE) or re.search(
        r"\banswer\s*[:.]?\s*\(?([A-D])\b", said, re.IGNORECASE
    )
    return match is not None and match.group(1).upper() == reference.strip().upper()


def _is_right_number(text: str, reference: str) -> bool:
    """An AIME answer: a whole number from 0 to 999, boxed or behind `Answer:`; the last one counts."""
    found = re.findall(r"\\boxed\{\s*(\d+)\s*\}", text) or re.findall(
        r"answer:\s*(\d+)\b(?!\.\d)", text, re.IGNORECASE
    )
    try:
        return bool(found) and int(found[-1]) <= 999 and int(found[-1]) == int(float(reference))
    except ValueError:
        return False


_JUDGES: dict[str, Callable[[str, str], bool]] = {"aime": _is_right_number, "gpqa": _is_right_choice}
