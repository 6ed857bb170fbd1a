"""Exceptions of wsi2ihc.

All derive from `Wsi2IhcError`, and each also from the builtin exception that a caller would expect. A message is one
line that says what is wrong, where, and what to do about it.
"""


class Wsi2IhcError(Exception):
    """Base class of all errors that are reported to users without a traceback."""


class OptionError(Wsi2IhcError, ValueError):
    """An option has a value that cannot be used, or contradicts another option."""


class SlideNotFoundError(Wsi2IhcError, FileNotFoundError):
    """The slide does not exist."""


class UnreadableSlideError(Wsi2IhcError, OSError):
    """The file is not a slide, is damaged, or is of an unsupported kind."""


class MissingResolutionError(Wsi2IhcError, ValueError):
    """Neither the slide nor the caller states the pixel size."""


class NoTissueError(Wsi2IhcError, ValueError):
    """The slide, or the chosen region or mask, has no tissue."""


class MaskError(Wsi2IhcError, ValueError):
    """A tissue mask file cannot be read or does not fit the slide."""


class TransformError(Wsi2IhcError, ValueError):
    """A transform cannot be read or does not fit the slides."""


class RegistrationError(Wsi2IhcError, ValueError):
    """Two slides could not be registered."""


class ModelNotFoundError(Wsi2IhcError, FileNotFoundError):
    """The model is neither a known name nor an existing file."""


class ModelError(Wsi2IhcError, ValueError):
    """A file is not a usable model, or the output of a model is not usable (NaN)."""


class DeviceError(Wsi2IhcError, ValueError):
    """The device does not exist, or does not support the chosen precision."""


class DeviceMemoryError(Wsi2IhcError, MemoryError):
    """The device runs out of memory even with a single window."""


class DatasetError(Wsi2IhcError, ValueError):
    """Paired patches are missing or damaged, or cannot be split as requested."""


class ManifestError(Wsi2IhcError, ValueError):
    """A manifest cannot be read, or has entries that cannot be processed."""


class BatchError(Wsi2IhcError, RuntimeError):
    """A batch cannot start or continue, because it has no workers."""


class TrainingError(Wsi2IhcError, RuntimeError):
    """Training cannot continue: the losses are not finite, or the run to resume has other options."""


class OutputError(Wsi2IhcError, OSError):
    """The output cannot be written, or differs when it is read back."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists and may not be overwritten."""


class OutputBusyError(OutputError):
    """Another process has locked the output."""
