"""From `module:attribute`, as the operator typed it, to the app. Never from anything a job says (FAILURES C8)."""

from __future__ import annotations

import importlib

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
    except ValueError:
        raise ConfigurationError(f"{path!r} does not name an app; give it as module:attribute, e.g. jobs:app") from None
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, Packhorse):
        raise ConfigurationError(
            f"{module_name} has no Packhorse app called {attribute or 'app'!r}; give it as module:attribute"
        )
    return app
