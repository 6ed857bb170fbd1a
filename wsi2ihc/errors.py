"""Every error that wsi2ihc raises on purpose.

One root, so that a caller can catch them all; each leaf is also the builtin exception that a caller would expect.
A message is one line that says what is wrong, where, and what to do about it.
"""


class Wsi2IhcError(Exception):
    """Root of all errors that are reported to a user without a traceback."""


class OptionError(Wsi2IhcError, ValueError):
    """An option has a value that cannot be used, or contradicts another option."""


class SlideNotFoundError(Wsi2IhcError, FileNotFoundError):
    """There is no slide under this path."""


class UnreadableSlideError(Wsi2IhcError, OSError):
    """The file is no slide, is damaged, or is of a kind that cannot be translated."""


class MissingResolutionError(Wsi2IhcError, ValueError):
    """The slide does not say how large its pixels are, and the caller did not either."""


class NoTissueError(Wsi2IhcError, ValueError):
    """Nothing on the slide (or in the chosen region or mask) is tissue."""


class MaskError(Wsi2IhcError, ValueError):
    """A tissue mask file cannot be read or does not fit the slide."""


class TransformError(Wsi2IhcError, ValueError):
    """A transform cannot be read or does not fit the slides."""


class RegistrationError(Wsi2IhcError, ValueError):
    """Two slides could not be registered."""


class ModelNotFoundError(Wsi2IhcError, FileNotFoundError):
    """There is no model of this name and no file under this path."""


class ModelError(Wsi2IhcError, ValueError):
    """A file is no usable model, or a model gave an unusable answer (NaN)."""


class DeviceError(Wsi2IhcError, ValueError):
    """The computing device is not there, or cannot work in the chosen precision."""


class DeviceMemoryError(Wsi2IhcError, MemoryError):
    """The device runs out of memory even with a single window."""


class DatasetError(Wsi2IhcError, ValueError):
    """Paired patches are missing, damaged, or cannot be split as asked."""


class ManifestError(Wsi2IhcError, ValueError):
    """A list of slides cannot be read, or names what cannot be done."""


class BatchError(Wsi2IhcError, RuntimeError):
    """A batch cannot begin or go on: nothing is there to run slides, or what runs them is gone."""


class TrainingError(Wsi2IhcError, RuntimeError):
    """Training cannot go on: the losses are not finite, or a run does not fit what is to be resumed."""


class OutputError(Wsi2IhcError, OSError):
    """The result cannot be written, or did not read back as it was written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output is already there and overwriting was not asked for."""


class OutputBusyError(OutputError):
    """Another process is at work on the output."""
