"""From what the stages wrote to the one Summary: paired comparisons are made here, from stored answers and losses."""

from __future__ import annotations

from pathlib import PurePath

from sparsekd.config import Gate
from sparsekd.report import gate, statistics
from sparsekd.report.formatting import number_of
from sparsekd.report.inputs import Documents, OperatorFile, ReportInputs, TaskFile, VariantInputs
from sparsekd.report.samples import Scores, shared_rows
from sparsekd.report.statistics import Estimate
from sparsekd.report.summary import (
    Agreement,
    Corpus,
    Interval,
    ModelInfo,
    OperatorTime,
    Pair,
    Perplexity,
    Source,
    Speed,
    SpeedRatio,
    Summary,
    TaskMean,
    TaskScore,
    Variant,
    Variants,
    interval,
)
from sparsekd.report.verdict import ROUNDS_FOR_A_CLAIM, verdict

FEW_DOCUMENTS = 10


def summarise(inputs: ReportInputs, name: str | None = None, limits: Gate | None = None) -> Summary:
    """The summary of one compression; `name` overrides the name made from source and width, `limits` are the gate's."""
    warnings = list(inputs.warnings)
    counted = _tasks_that_count(inputs, warnings)
    variants = {key: _variant(inputs, key, counted, warnings) for key in inputs.variants}
    _warn_of_few_documents(variants["dense"], warnings)
    _warn_of_few_rounds(variants["distilled"], warnings)
    summary = Summary(
        model=ModelInfo(name=name or _default_name(inputs), label=source_label(inputs.source), source=inputs.source),
        reduction=inputs.reduction,
        variants=Variants(**variants),
        corpora=_corpora(inputs),
        quantised=inputs.quantised,
        profile={variant: _times(times) for variant, times in inputs.benchmark.profile.items()},
        profile_phases={
            variant: {phase: _times(times) for phase, times in phases.items()}
            for variant, phases in inputs.benchmark.profile_phases.items()
        },
        warnings=tuple(dict.fromkeys(warnings)),
    )
    judged = gate.judge(limits or Gate(), inputs, variants["distilled"].speed)
    return summary.model_copy(update={"verdict": " ".join(verdict(summary)), "gate": judged})


def _corpora(inputs: ReportInputs) -> dict[str, Corpus]:
    """Those that were calibrated on first (manifests keep names in alphabetical order)."""
    fields = Corpus.model_fields
    known = {name: Corpus(**{key: facts.get(key) for key in fields}) for name, facts in inputs.corpora.items()}
    return dict(sorted(known.items(), key=lambda item: item[1].role != "calibration"))


def source_label(source: Source) -> str:
    """The dense model as every table calls it: `SmolLM2-135M-Instruct, de-quantised from Q4_1`."""
    if source.label:
        return source.label
    name = PurePath(source.base_model if source.quantization and source.base_model else source.name).name
    return f"{name}, de-quantised from {source.quantization}" if source.quantization else name


def _default_name(inputs: ReportInputs) -> str:
    name = PurePath(source_label(inputs.source).split(",")[0]).name  # owner/name of the hub without its owner
    return f"{name}-width-{1 - inputs.reduction.width:.3g}"


def _variant(inputs: ReportInputs, name: str, counted: list[str], warnings: list[str]) -> Variant:
    ours, dense = inputs.variants[name], inputs.variants["dense"]
    evaluation = ours.evaluation
    if evaluation.dtype != dense.evaluation.dtype:
        warnings.append(
            f"{name} was evaluated in {evaluation.dtype} and dense in {dense.evaluation.dtype}, as on machines of two "
            "kinds: differences as small as rounding mean nothing. Set evaluate.dtype to have one for all."
        )
    differences = {task: _paired(task, name, ours, dense, warnings) for task in evaluation.tasks}
    return Variant(
        parameters=evaluation.parameters,
        bytes=evaluation.bytes,
        checkpoint_dtype=evaluation.checkpoint_dtype,
        dtype=evaluation.dtype,
        perplexity={corpus: _perplexity(corpus, name, ours, dense, warnings) for corpus in evaluation.perplexity},
        agreement={
            corpus: Agreement(kl=found.kl.interval(), top1=found.top1.interval())
            for corpus, found in evaluation.agreement.items()
        },
        repetition={corpus: share for corpus, share in evaluation.repetition.items() if share is not None},
        tasks={
            task: _task(result, dense.evaluation.tasks.get(task), differences[task], task in counted)
            for task, result in evaluation.tasks.items()
        },
        groups={
            group: _task(result, dense.evaluation.groups.get(group), None, counts=False)
            for group, result in evaluation.groups.items()
        },
        task_mean=_task_mean(ours, dense, differences, counted),
        speed=_speed(inputs, name),
    )


def _perplexity(corpus: str, name: str, ours: VariantInputs, dense: VariantInputs, warnings: list[str]) -> Perplexity:
    found = ours.evaluation.perplexity[corpus]
    excess, ratio = None, None
    base = dense.evaluation.perplexity.get(corpus)
    if base:
        paired = _excess_loss(ours.documents.get(corpus), dense.documents.get(corpus))
        if paired:
            excess, ratio = interval(paired), interval(statistics.exponential(paired))
        else:
            ratio = Interval(value=found.value / base.value)
            if name != "dense":
                warnings.append(f"No losses by document are stored for {corpus}: its ratio to dense has no interval.")
    return Perplexity(**found.model_dump(), ratio=ratio, excess_loss=excess)


def _excess_loss(ours: Documents | None, dense: Documents | None) -> Estimate | None:
    """Mean loss minus dense's, nats a token, over the same documents; None unless both scored the same tokens."""
    if not ours or not dense or not ours.tokens or ours.tokens != dense.tokens or len(ours.nll) != len(dense.nll):
        return None
    return statistics.bootstrap_ratio([a - b for a, b in zip(ours.nll, dense.nll, strict=True)], ours.tokens)


def _tasks_that_count(inputs: ReportInputs, warnings: list[str]) -> list[str]:
    """Tasks that all variants scored, where more is better and dense is clearly above chance."""
    counted: list[str] = []
    for task, result in inputs.variants["dense"].evaluation.tasks.items():
        missing = [name for name, variant in inputs.variants.items() if task not in variant.evaluation.tasks]
        if missing:
            warnings.append(f"{task} was not scored for {', '.join(missing)} and leaves the means.")
        elif not result.climbs:
            continue
        elif not statistics.above_chance(result.value, result.stderr, result.chance):
            warnings.append(
                f"{task}: dense scores {result.value:.3f}, not 2 standard errors above chance "
                f"({result.chance or 0:.3g}); it says nothing about what was kept and leaves the means."
            )
        else:
            counted.append(task)
    return counted


def _paired(
    task: str, name: str, ours: VariantInputs, dense: VariantInputs, warnings: list[str]
) -> tuple[Estimate, float] | None:
    """Difference to dense on the same rows, and the share of flipped answers; None when the rows cannot be paired."""
    if name == "dense":
        return Estimate(0.0, 0.0, 0.0, 0.0), 0.0
    mine, theirs = ours.scores.get(task), dense.scores.get(task)
    if not mine or not theirs:
        return None
    model, base = shared_rows(mine, theirs)
    if not model:
        warnings.append(f"{task}: {name} and dense share no row, so they cannot be compared row by row.")
        return None
    if len(model) < max(len(mine.values), len(theirs.values)):
        warnings.append(f"{task}: {name} and dense share only {len(model)} rows; the difference is over those.")
    _warn_of_other_answers(task, name, mine, ours.evaluation.tasks[task], warnings)
    return statistics.paired_difference(model, base), statistics.flips(model, base)


def _warn_of_other_answers(task: str, name: str, scores: Scores, result: TaskFile, warnings: list[str]) -> None:
    if abs(scores.mean() - result.value) > 1e-3:
        warnings.append(
            f"{task}: the stored answers of {name} give {scores.mean():.4f}, lm-eval reported {result.value:.4f}."
        )


def _task(result: TaskFile, dense: TaskFile | None, paired: tuple[Estimate, float] | None, counts: bool) -> TaskScore:
    recovery = result.value / dense.value if dense and dense.value and result.climbs else None
    return TaskScore(
        **result.model_dump(exclude={"higher_is_better"}),
        difference=interval(paired[0]) if paired else None,
        flips=paired[1] if paired else None,
        recovery=recovery,
        in_mean=counts,
    )


def _task_mean(
    ours: VariantInputs,
    dense: VariantInputs,
    differences: dict[str, tuple[Estimate, float] | None],
    counted: list[str],
) -> TaskMean | None:
    if not counted:
        return None
    value = sum(ours.evaluation.tasks[task].value for task in counted) / len(counted)
    base = sum(dense.evaluation.tasks[task].value for task in counted) / len(counted)
    paired = [found[0] for task in counted if (found := differences[task])]
    difference = interval(statistics.mean_difference(paired)) if len(paired) == len(counted) else None
    return TaskMean(tasks=tuple(counted), value=value, difference=difference, recovery=value / base)


def _speed(inputs: ReportInputs, name: str) -> Speed:
    benchmark = inputs.benchmark
    measured = benchmark.models.get(name)
    if measured is None:
        return Speed()
    predicted = benchmark.predicted.get(name)
    return Speed(
        prefill_tokens_per_second=_median(measured.prefill_tokens_per_second),
        decode_tokens_per_second=_median(measured.decode_tokens_per_second),
        peak_memory_bytes=measured.peak_memory_bytes,
        rounds=max(len(measured.prefill_tokens_per_second), len(measured.decode_tokens_per_second)),
        ratio=_speed_ratio(inputs, name),
        predicted=Pair(prefill=predicted.prefill, decode=predicted.decode) if predicted else None,
    )


def _speed_ratio(inputs: ReportInputs, name: str) -> SpeedRatio | None:
    if name == "dense":
        one = Interval(value=1.0, low=1.0, high=1.0)
        return SpeedRatio(prefill=one, decode=one)
    ratio = inputs.benchmark.ratio.get(name)
    if ratio is None:
        return None
    return SpeedRatio(
        prefill=ratio.prefill.interval() if ratio.prefill else None,
        decode=ratio.decode.interval() if ratio.decode else None,
    )


def _times(times: dict[str, OperatorFile]) -> dict[str, OperatorTime]:
    return {kind: OperatorTime(**time.model_dump()) for kind, time in times.items()}


def _median(values: list[float]) -> float | None:
    if not values:
        return None
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _warn_of_few_documents(dense: Variant, warnings: list[str]) -> None:
    few = [corpus for corpus, found in dense.perplexity.items() if (found.documents or FEW_DOCUMENTS) < FEW_DOCUMENTS]
    if few:
        warnings.append(
            f"Fewer than {FEW_DOCUMENTS} test documents in {', '.join(few)}: read those intervals as a hint. "
            "A larger calibrate.held_out_tokens narrows them."
        )


def _warn_of_few_rounds(distilled: Variant, warnings: list[str]) -> None:
    if 0 < distilled.speed.rounds < ROUNDS_FOR_A_CLAIM:
        warnings.append(
            f"Speed was measured in {number_of(distilled.speed.rounds, 'round')}: too few "
            f"to call a model faster or slower. Set benchmark.rounds to {ROUNDS_FOR_A_CLAIM} or more."
        )
