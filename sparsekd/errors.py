"""The errors a user can meet. Each message is one sentence or two: place, found, allowed, next step."""


class SparseKDError(Exception):
    """Something the user can mend. Commands print its text without a traceback and exit with code 2."""

    exit_code = 2


class ConfigError(SparseKDError, ValueError):
    """A setting is unknown, of a wrong type, out of bounds, or does not fit the model."""


class SourceError(SparseKDError):
    """A model, text or benchmark cannot be found, read, downloaded or verified."""


class ModelError(SparseKDError):
    """A checkpoint is damaged or its layout is none that we know."""


class ArtifactError(SparseKDError):
    """A stage's output is missing, incomplete, of another version, or not what its manifest says."""


class ResourceError(SparseKDError):
    """The disk, the memory or the device will not do for what was asked."""


class TrainingError(SparseKDError):
    """Distillation diverged, or its checkpoint does not fit the run."""


class StageError(SparseKDError):
    """A stage of the workflow failed, or its parameters or inputs changed while it ran."""


class ExportError(SparseKDError):
    """A checkpoint cannot be written in a runtime's format, or the runtime computes something else with it."""


class NotExportableError(ExportError):
    """The runtime, or its converter, does not take this layout or tokenizer, or is not installed."""
