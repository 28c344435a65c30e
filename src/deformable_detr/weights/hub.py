"""Downloads of models from huggingface.co by name, through the library huggingface_hub with its cache and tokens."""

import errno
import inspect
import io
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import CheckpointError, OutputError, first_line
from deformable_detr.core.progress import Reporter, Silence

CONFIG = "config.json"
PREPROCESSING = "preprocessor_config.json"
CARD = "README.md"
_BESIDE = (PREPROCESSING, CARD)
"""Other files that are read: the preprocessing, and the model card with the licence."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""File names of weights on the hub, in order of preference."""
_HUB = "huggingface.co"
_MEGABYTE = 10**6


def fetch(name: str, revision: str | None = None, *, reporter: Reporter | None = None) -> Path:
    """Local folder with the settings and weights of a model; the weights file alone if the model has no settings.

    Earlier downloads are used again if they are the newest version, if there is no network, or if HF_HUB_OFFLINE is
    set. Only the settings, the preprocessing, the model card with its licence, and the weights are downloaded.

    Args:
        name: name of the model, owner/name.
        revision: a branch, a tag or a commit; the newest commit of the branch main if left out.
        reporter: receives the progress.

    Raises:
        CheckpointError: no such model or revision, no access to it, no network, or no weights in it.
        OutputError: the cache of huggingface_hub cannot be written; its disk may be full.
    """
    repository = _Repository(name, revision, reporter or Silence())
    has_settings = repository.file(CONFIG) is not None
    for file in _BESIDE * has_settings:
        repository.file(file)
    weights = next((path for path in map(repository.file, WEIGHTS) if path is not None), None)
    if weights is None:
        raise CheckpointError(f"{_HUB}/{name} has no {' or '.join(WEIGHTS)}")
    return weights.parent if has_settings else weights


class _Repository:
    """Model on the hub. All its files come from one commit, even if a new commit appears during the download."""

    def __init__(self, name: str, revision: str | None, reporter: Reporter) -> None:
        self._name, self._revision, self._reporter = name, revision, reporter

    def file(self, file: str) -> Path | None:
        """Local path of a file of the model; None if the model has no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        # Network errors have had three base classes over the library's releases, and it exports none of them.
        broken: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], OSError, RuntimeError)
        options: dict[str, Any] = {"revision": self._revision}
        # Releases before 1.3 always draw their own progress bars.
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
            options["tqdm_class"] = _bar(self._reporter, file)
        self._reporter.update(f"asking {_HUB} for {self._name}", 0, 1)
        where = f"{_HUB}/{self._name}"
        try:
            path = Path(hf_hub_download(self._name, file, **options))
        except LocalEntryNotFoundError as error:
            if self._is_known_to_be_absent(file):
                return None
            raise CheckpointError(
                f"{where}: {file} is not in the cache, and {_HUB} cannot be reached or HF_HUB_OFFLINE is set"
            ) from error
        except GatedRepoError as error:
            raise CheckpointError(
                f"{where} is gated: accept its terms at https://{where}, then log in with: hf auth login"
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{_HUB} has no model {self._name}; if it is a private one, log in with: hf auth login"
            ) from error
        except RevisionNotFoundError as error:
            raise CheckpointError(f"{where} has no revision {self._revision}") from error
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise CheckpointError(
                f"{self._name} cannot be the name of a model on {_HUB}: {first_line(error)}"
            ) from error
        except broken as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise OutputError(
                    f"cannot keep {file} of {where}: {error.strerror}; HF_HOME names another folder for its cache"
                ) from error
            raise CheckpointError(f"{file} of {where} cannot be fetched: {first_line(error)}") from error
        self._revision = path.parent.name  # all further files come from this commit
        return path

    def _is_known_to_be_absent(self, file: str) -> bool:
        """Whether the cache has recorded that the model has no such file, so that no network is needed."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        return try_to_load_from_cache(self._name, file, revision=self._revision) is _CACHED_NO_EXIST


def _bar(reporter: Reporter, file: str) -> type:
    """Progress bar class for the library that draws nothing and informs the reporter."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"file": io.StringIO()})
            # A bar that is disabled, as it is without a terminal, does not count by itself.
            self._done = kwargs.get("initial") or 0

        def update(self, n: Any = 1) -> Any:
            self._done += n or 0
            total = max(self._done, self.total or 0)
            reporter.update(f"fetching {file}, MB", int(self._done) // _MEGABYTE, int(total) // _MEGABYTE)
            return super().update(n)

    return Bar
