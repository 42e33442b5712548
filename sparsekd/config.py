"""The configuration: frozen pydantic models, one a stage. params.yaml is their only source.

Every field carries the description that `sparsekd config --schema`, Prefect's form and the docs show.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "bfloat16", "float32"]
OpenMPWait = Literal["passive", "active"]
CacheKind = Literal["hidden", "sampled", "online"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Choice = Literal["auto", "always", "never"]  # not on and off, which some YAML readers take for booleans
SelectionName = Literal["mean_abs_svd", "svd", "energy", "mean_abs", "magnitude", "random"]
Compensation = Literal["none", "one_shot", "sequential"]
QuantisedType = Literal["q8_0", "q4_0"]
ExportFormat = Literal["gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0"]
BUDGETS = ("width", "ffn_reduction", "non_embedding_reduction", "total_reduction", "parameters")
"""Keys of `prune` that say how much is kept. One is given; the others are null."""


class Section(BaseModel):
    """One section of params.yaml: no unknown key, no NaN, no change after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Runtime(Section):
    """Where and how the numbers are computed. Part of what the bits depend on, so DVC tracks it."""

    device: Device = Field("auto", description="Where to compute: auto takes a CUDA device when there is one.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 takes every core this process may use.")
    openmp_wait: OpenMPWait = Field(
        "passive",
        description="How idle OpenMP threads wait: passive is safe on a shared machine, active faster on an idle one.",
    )


class Model(Section):
    """The dense model."""

    source: str = Field(
        "smollm2-135m-instruct-q4_1",
        min_length=1,
        description="A catalogue name, owner/name on the hub (hf: is the explicit form), or a directory (file:).",
    )
    revision: str | None = Field(
        None, description="Commit or content hash of the source; resolved and written here before a run."
    )


class Texts(Section):
    """The texts: what is calibrated and trained on, and what is only ever held out."""

    sources: tuple[str, ...] = Field(
        ("wiki", "c4"),
        min_length=1,
        description="Calibration corpora in equal shares: catalogue names, your own corpora (`sparsekd texts`), hub "
        "datasets, .jsonl, .parquet or .txt.",
    )
    revisions: tuple[str, ...] | None = Field(
        None, description="Commit or content hash of each source, in the same order; resolved before a run."
    )
    column: str | None = Field(None, description="The column that holds the text; by default text, then messages.")

    @model_validator(mode="after")
    def _same_order(self) -> Texts:
        if len(set(self.sources)) != len(self.sources):
            raise ValueError("texts.sources names a source twice; name each once")
        if self.revisions is not None and len(self.revisions) != len(self.sources):
            raise ValueError(
                f"texts.revisions has {len(self.revisions)} entries for {len(self.sources)} sources; "
                "remove it and it is resolved again"
            )
        return self


class Calibrate(Section):
    """How texts become packed sequences, split by document."""

    tokens: int = Field(122_880, ge=1, description="Calibration tokens in all: distillation trains on all of them.")
    sequence_length: int = Field(512, ge=8, description="Tokens a sequence.")
    held_out_tokens: int = Field(8_192, ge=1, description="Tokens a corpus in validation, and again in test.")
    held_out_share: float = Field(0.08, gt=0, lt=0.5, description="Share of the documents in validation, and in test.")
    minimum_characters: int = Field(500, ge=1, description="Shorter documents are left out.")
    chat_prompts: int = Field(64, ge=0, le=64, description="Committed prompts the dense model answers for `chat`.")
    chat_tokens: int = Field(48, ge=1, description="Most new tokens in each of those answers.")
    self_generated: float = Field(
        0.333,
        ge=0,
        lt=1,
        description="Share of the calibration tokens that the dense model writes itself, from its chat template if it "
        "has one (method.md); the rest are the texts', in equal shares.",
    )
    seed: int = Field(0, ge=0, description="Order of documents, the split's salt, and what the dense model writes.")

    @property
    def self_generated_sequences(self) -> int:
        """How many of the calibration sequences the dense model writes."""
        return round(self.self_generated * (self.tokens // self.sequence_length))

    @property
    def text_sequences(self) -> int:
        """How many of them the texts fill."""
        return self.tokens // self.sequence_length - self.self_generated_sequences


class Teacher(Section):
    """The teacher cache: what the student learns from, see docs/method.md."""

    cache: CacheKind = Field(
        "hidden",
        description="Of calibration tokens: hidden (exact states), sampled (smaller, unbiased for forward KL), or "
        "online (none: the dense model runs beside the student). Held-out tokens are always exact.",
    )
    top_k: int = Field(32, ge=1, description="Sampled: the likeliest tokens, each kept with its probability.")
    draws: int = Field(64, ge=1, description="Sampled: draws from the other tokens' distribution.")
    temperature: float = Field(1.0, gt=0, description="Sampled: its temperature, equal to distill.temperature.")
    seed: int = Field(0, ge=0, description="Sampled: the draws.")
    batch_size: int = Field(4, ge=1, description="Sequences a forward pass of the dense model.")


class Prune(Section):
    """Pruning of the feed-forward layers: how much is kept (one of the first five), which neurons, what makes up."""

    width: float | None = Field(
        0.75,
        gt=0,
        description="New intermediate_size: a fraction in (0, 1] of the old one, or the integer itself. Null where one "
        "of the next four says how much goes.",
    )
    ffn_reduction: float | None = Field(
        None, ge=0, lt=1, description="Instead of width: share of the feed-forward parameters to remove."
    )
    non_embedding_reduction: float | None = Field(
        None, ge=0, lt=1, description="Instead of width: share to remove of all parameters but the embeddings'."
    )
    total_reduction: float | None = Field(
        None, ge=0, lt=1, description="Instead of width: share of all parameters to remove."
    )
    parameters: int | None = Field(
        None, ge=1, description="Instead of width: the most parameters that the whole model may have."
    )
    multiple_of: int = Field(
        128,
        ge=1,
        description="What is no integer width is rounded to a multiple of this: 256 for llama.cpp's K-quants, 1 for "
        "any width.",
    )
    selection: SelectionName = Field(
        "mean_abs_svd",
        description="Which neurons stay: svd subset selection led by the mean of |a|, or what it is compared with "
        "(method.md).",
    )
    compensation: Compensation = Field(
        "sequential",
        description="Down-projections of the rest: as they are, refitted on the dense model's activations, or refitted "
        "layer by layer on the pruned model's.",
    )
    statistics_tokens: int = Field(
        98_304, ge=1, description="Statistics come from the first so many calibration tokens; from all if fewer."
    )
    ridge: float = Field(0.01, ge=0, description="Ridge, as a share of the mean squared activation.")
    beta: float = Field(
        0.25, ge=0, le=1, description="Share of the residual target in the sequential compensation (method.md)."
    )
    batch_size: int = Field(4, ge=1, description="Sequences a forward pass.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the selection random.")

    @property
    def budget(self) -> tuple[str, float]:
        """The key that says how much is kept, and its value."""
        return next((key, value) for key in BUDGETS if (value := getattr(self, key)) is not None)

    @field_validator("width")
    @classmethod
    def _fraction_or_integer(cls, width: float | None) -> float | None:
        if width is not None and width > 1 and width != int(width):
            raise ValueError("must be a fraction in (0, 1] or an integer number of neurons")
        return width

    @model_validator(mode="before")
    @classmethod
    def _others_are_null(cls, values: Any) -> Any:
        """Whoever gives one budget need not say that the others, width's default among them, do not hold."""
        if not isinstance(values, dict) or all(values.get(key) is None for key in BUDGETS):
            return values
        return dict.fromkeys(BUDGETS) | values

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        given = [f"prune.{key} is {value}" for key in BUDGETS if (value := getattr(self, key)) is not None]
        if not given:
            raise ValueError(f"prune.width is null, and so is {', '.join(BUDGETS[1:])}; give one of them")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}; only one can say how much is kept, so set the others to null")
        return self


class Distributed(Section):
    """Several processes that distil one model together; docs/machines.md says how they are started."""

    strategy: Literal["none", "ddp", "fsdp"] = Field(
        "none", description="none is one process; with ddp each holds the model, with fsdp a share of its weights."
    )
    processes: int = Field(
        0, ge=0, le=4096, description="Processes in all; 0 takes one for each CUDA device, and one on a CPU."
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="How they talk; auto takes nccl between CUDA devices and gloo between CPUs."
    )


class Distill(Section):
    """Self-referential distillation: the pruned model matches the dense model's distribution."""

    epochs: int = Field(1, ge=1, description="Passes over the calibration tokens.")
    tokens: int = Field(0, ge=0, description="Train on the first of the calibration tokens only; 0 takes all.")
    alpha: float = Field(0.5, ge=0, le=1, description="Share of the KL term: 1 is KL only, 0 is cross-entropy only.")
    divergence: Divergence = Field(
        "forward_kl",
        description="What is called KL here: forward_kl KL(teacher || student), reverse_kl KL(student || teacher), or "
        "jsd, Jensen-Shannon.",
    )
    temperature: float = Field(1.0, gt=0, description="Softens teacher and student alike in the KL term.")
    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps that warm up; then cosine to 0.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW, first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW, second moment.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest global gradient norm.")
    batch_size: int = Field(1, ge=1, description="Sequences a step, over all processes.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="bf16 autocast over float32 weights, or plain float32; auto: bf16 where the device has units.",
    )
    compile: Choice = Field("auto", description="torch.compile of layers and loss; auto: when a compiler is found.")
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="How attention is computed; auto is sdpa, and eager where layers are compiled for a CPU."
    )
    activation_checkpointing: bool = Field(
        False, description="Keep each layer's input only and compute it again for the gradient: less memory, slower."
    )
    checkpoint_every: int = Field(40, ge=1, description="Steps between resumable checkpoints.")
    validate_every: int = Field(
        120, ge=1, description="Steps between validations; the weights with the lowest validation KL are kept."
    )
    patience: int = Field(
        5, ge=0, description="Validations in a row without a lower KL after which training stops; 0 trains to the end."
    )
    validation_tokens: int = Field(2_048, ge=1, description="Validation tokens a corpus for each of them.")
    seed: int = Field(0, ge=0, description="Order of the sequences.")
    distributed: Distributed = Distributed()

    @model_validator(mode="after")
    def _divides(self) -> Distill:
        strategy, processes = self.distributed.strategy, self.distributed.processes
        if strategy == "none" and processes > 1:
            raise ValueError(
                f"distill.distributed.processes is {processes}; with distill.distributed.strategy = none there is one "
                "process, so set that to ddp or fsdp"
            )
        if processes and self.batch_size % processes:
            raise ValueError(
                f"distill.batch_size is {self.batch_size}; it is for all processes and must be a multiple of "
                f"distill.distributed.processes = {processes}"
            )
        return self


class Evaluate(Section):
    """Perplexity, agreement with the dense model, and lm-eval tasks."""

    tasks: tuple[str, ...] = Field(
        ("arc_easy", "piqa", "hellaswag", "sciq"), description="lm-eval tasks; packaged ones run offline."
    )
    rows: int = Field(200, ge=0, description="Seeded random rows of each task, the same for all variants; 0 takes all.")
    validation_rows: int = Field(
        0, ge=0, description="As many other rows of each task, for the gate alone; 0 leaves tasks out of it."
    )
    num_fewshot: int | None = Field(None, ge=0, description="Examples in the prompt; by default what the task says.")
    apply_chat_template: bool = Field(False, description="Wrap each request in the model's chat template.")
    include_path: str | None = Field(None, description="A directory with lm-eval task definitions of your own.")
    include_revision: str | None = Field(
        None, description="Content hash of that directory; resolved and written here before a run."
    )
    dtype: DType = Field(
        "auto",
        description="Weights and compute of the evaluation; auto: bfloat16 where the device has units for it.",
    )
    batch_size: int = Field(8, ge=1, description="Sequences or requests a forward pass.")
    seed: int = Field(1234, ge=0, description="Choice of rows, and the bootstrap.")

    @field_validator("tasks")
    @classmethod
    def _no_twins(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("must name each task once")
        return tasks


class Benchmark(Section):
    """Speed, measured in interleaved rounds with a process for each model."""

    rounds: int = Field(5, ge=1, description="Rounds; each times every model once.")
    prefill_tokens: int = Field(512, ge=8, description="Tokens of the timed prompt.")
    decode_tokens: int = Field(32, ge=2, description="Tokens generated after it.")
    batch_size: int = Field(1, ge=1, description="Prompts at once.")
    dtype: DType = Field("auto", description="Weights and compute; auto: bfloat16 where the device has units for it.")
    openmp_wait: OpenMPWait = Field(
        "active", description="runtime.openmp_wait while speed is timed: nothing of ours runs beside it."
    )


class Gate(Section):
    """Limits against the dense model that a result must keep to become the champion. Judged on validation, not test."""

    kl: float | None = Field(
        None, gt=0, description="Largest KL(dense || distilled) on each corpus, nats a token; null is no limit."
    )
    perplexity_ratio: float | None = Field(
        None, gt=0, description="Largest perplexity against dense on each corpus: 1.1 is 10 % above it."
    )
    task_margin: float | None = Field(
        None, ge=0, description="Most points that each task may lose; needs evaluate.validation_rows."
    )
    prefill_speed: float | None = Field(None, gt=0, description="Smallest prefill speed against dense.")
    decode_speed: float | None = Field(None, gt=0, description="Smallest decode speed against dense.")
    corpora: tuple[str, ...] | None = Field(None, description="Corpora that are judged; by default all of them.")
    minimum_documents: int = Field(10, ge=2, description="Fewer documents of a corpus are not enough evidence.")
    minimum_rows: int = Field(100, ge=2, description="Fewer rows of a task are not enough evidence.")


class Export(Section):
    """The compressed model in the formats of other runtimes, each compared there with the checkpoint."""

    formats: tuple[ExportFormat, ...] = Field(
        ("gguf-f16", "gguf-q8_0"), description="Files to write: gguf is llama.cpp's. An empty list writes none."
    )
    compare: tuple[QuantisedType, ...] = Field(
        ("q8_0", "q4_0"),
        description="Where files are written: also the dense model and this one in these types, on the test text.",
    )
    compare_tokens: int = Field(1024, ge=256, description="Test tokens of each corpus for that.")
    compare_rows: int = Field(
        0, ge=0, description="Rows of each of evaluate.tasks for that, in llama.cpp; 0 scores none."
    )
    compare_rounds: int = Field(
        3, ge=0, description="Rounds in which each of those files is timed in llama.cpp; 0 times none."
    )


class Report(Section):
    """What the report shows beside the numbers."""

    name: str | None = Field(None, description="Name of the compressed model; by default source and width.")
    prompts: tuple[str, ...] = Field(
        (
            "Explain in two sentences why the sky is blue.",
            "Write a short email that moves a meeting from Monday to Tuesday.",
            "List three uses of a paper clip.",
        ),
        min_length=1,
        max_length=8,
        description="Fixed prompts that every variant answers.",
    )
    prompt_tokens: int = Field(64, ge=1, description="Most new tokens in each answer.")


class RunConfig(Section):
    """All of params.yaml."""

    preset: str = Field("default", description="The preset these values started from.")
    runtime: Runtime = Runtime()
    model: Model = Model()
    texts: Texts = Texts()
    calibrate: Calibrate = Calibrate()
    teacher: Teacher = Teacher()
    prune: Prune = Prune()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    gate: Gate = Gate()
    export: Export = Export()
    report: Report = Report()

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.calibrate.tokens < self.calibrate.sequence_length:
            raise ValueError(
                f"calibrate.tokens is {self.calibrate.tokens}; it must hold at least one sequence of "
                f"calibrate.sequence_length = {self.calibrate.sequence_length} tokens"
            )
        if self.distill.tokens > self.calibrate.tokens:
            raise ValueError(
                f"distill.tokens is {self.distill.tokens}; it must not exceed "
                f"calibrate.tokens = {self.calibrate.tokens}"
            )
        distill = self.distill
        if self.teacher.cache == "sampled" and (
            reason := sampled_refusal(distill.divergence, distill.temperature, self.teacher.temperature)
        ):
            raise ValueError(reason)
        if self.distill.distributed.backend == "nccl" and self.runtime.device == "cpu":
            raise ValueError(
                "distill.distributed.backend is 'nccl', which needs CUDA devices; with runtime.device = cpu set it to "
                "auto or gloo"
            )
        if self.evaluate.validation_rows and not self.evaluate.rows:
            raise ValueError(
                f"evaluate.validation_rows is {self.evaluate.validation_rows} and evaluate.rows is 0, all rows; the "
                "gate's rows must be others, so name how many evaluate.rows the tests take"
            )
        return self


def sampled_refusal(divergence: Divergence, temperature: float, cached: float) -> str | None:
    """Why a sampled cache made at temperature `cached` cannot serve this loss without bias, or None where it can."""
    if divergence != "forward_kl":
        return (
            f"distill.divergence is {divergence} and teacher.cache is sampled; a sample is unbiased only for losses "
            "linear in the teacher's probabilities, which is forward_kl alone, so set teacher.cache to hidden or online"
        )
    if temperature != cached:
        return (
            f"distill.temperature is {temperature:g} and teacher.temperature is {cached:g}; a sample drawn at one "
            "temperature is biased at another, so make them equal or set teacher.cache to hidden or online"
        )
    return None
