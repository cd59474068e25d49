"""From `module:attribute`, as the operator typed it, to the app. Never from anything a job says (FAILURES C8)."""

from __future__ import annotations

import importlib
from types import TracebackType

from ..app import Packhorse
from ..errors import ConfigurationError


def import_app(path: str) -> Packhorse:
    """Import the app `path` names; the attribute is `app` unless given. Raises ConfigurationError."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"no module {module_name!r} from this directory; give the app as module:attribute, e.g. jobs:app"
            ) from None
        raise
    except SystemExit as error:  # it would end us without a word, and a worker's runner again and again
        raise ConfigurationError(
            f"{module_name} ends the program when it is imported (exit code {error.code}); "
            "move that below `if __name__ == '__main__':`"
        ) from None
    except ValueError:
        raise ConfigurationError(f"{path!r} does not name an app; give it as module:attribute, e.g. jobs:app") from None
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, Packhorse):
        raise ConfigurationError(
            f"{module_name} has no Packhorse app called {attribute or 'app'!r}; give it as module:attribute"
        )
    return app


def own_traceback(error: BaseException) -> TracebackType | None:
    """Answer where an import of `import_app` failed, from the user's first line on; None where no line of it ran.

    Of an error from elsewhere all of it.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code is not import_app.__code__:
        frame = frame.tb_next
    if frame is None:
        return error.__traceback__
    while frame is not None and _is_machinery(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return frame


def _is_machinery(filename: str) -> bool:
    return filename in {__file__, importlib.__file__} or filename.startswith("<frozen importlib")
