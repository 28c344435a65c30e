"""Services that receive the metrics of a run: TensorBoard, Weights & Biases, MLflow. None of them can stop a run."""

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from deformable_detr.core.config import flat_settings
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import read_json
from deformable_detr.core.short_text import printable_line, shown
from deformable_detr.runs.folder import RunFolder

ServiceName = Literal["tensorboard", "wandb", "mlflow"]

_TITLES: dict[ServiceName, str] = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow"}
_PROJECT = "deformable-detr"
# What Weights & Biases and MLflow allow in the id of a run; both make it a part of addresses.
_ID = re.compile(r"[^/\\#?%:]{1,128}")
# Characters that MLflow refuses in the name of a metric; the name of a class may hold them.
_NOT_FOR_MLFLOW = re.compile(r"[^\w.\- /]")


@runtime_checkable
class Service(Protocol):
    """Service that receives metrics."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the numbers of one step or epoch, by name; `step` counts from the start of the run."""
        ...

    def close(self, *, failed: bool) -> None:
        """Finish the log at the end of the run."""
        ...


def chosen_services(wanted: Sequence[str] | None) -> tuple[ServiceName, ...]:
    """Check the names of the services to log to, before any work.

    Args:
        wanted: names of services; None means TensorBoard if it is installed.

    Returns:
        The services to log to.

    Raises:
        ConfigError: a service is unknown or not installed.
    """
    if wanted is None:
        return ("tensorboard",) if _is_installed("tensorboard") else ()
    chosen: list[ServiceName] = []
    for name in dict.fromkeys(wanted):
        known = next((one for one in get_args(ServiceName) if one == name), None)
        if known is None:
            raise ConfigError(f"cannot log to {name!r}; there are {', '.join(get_args(ServiceName))}")
        if not _is_installed(known):
            raise ConfigError(
                f"{_TITLES[known]} is not installed; `pip install {known}` brings it, or leave it out: "
                "metrics.jsonl and metrics.csv have the same numbers"
            )
        chosen.append(known)
    return tuple(chosen)


def open_service(
    name: ServiceName, folder: RunFolder, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Service:
    """Open a service. An error in it, now or later, is reported once and ends the logging, but not the run.

    Args:
        name: name from `chosen_services`.
        folder: the run folder. The service shows its name, and it keeps the id of the run at the service for resuming.
        settings: settings of the run, which the service shows.
        say: receives a message if the service fails.
    """
    start: dict[ServiceName, Callable[[], Service]] = {
        "tensorboard": lambda: _TensorBoard(folder.path / "tensorboard"),
        "wandb": lambda: _WeightsAndBiases(folder, settings),
        "mlflow": lambda: _MLflow(folder, settings),
    }
    return _Guarded(_TITLES[name], start[name], say)


class _Guarded:
    """Service that is given up at its first error. It catches every exception, because foreign code may raise any."""

    def __init__(self, title: str, start: Callable[[], Service], say: Callable[[str], None]) -> None:
        self._title, self._say = title, say
        self._service: Service | None = None
        self._try(lambda: self._begin(start))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        service = self._service
        if service is not None:
            self._try(lambda: service.log(numbers, step))

    def close(self, *, failed: bool) -> None:
        service = self._service
        if service is not None:
            self._try(lambda: service.close(failed=failed))

    def _begin(self, start: Callable[[], Service]) -> None:
        self._service = start()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._service = None
            reason = printable_line(f"{type(error).__name__}: {error}")
            self._say(f"{self._title} failed and gets no more metrics ({reason}); metrics.jsonl has them all")


class _TensorBoard:
    """TensorBoard's event files. They are created by the first metrics, so a run that fails earlier leaves none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are about TensorBoard's own code; users cannot do anything
                from torch.utils.tensorboard import SummaryWriter

                # Steps after the last checkpoint are repeated after a crash, and would be shown twice.
                self._writer = SummaryWriter(str(self._path), purge_step=step if self._path.exists() else None)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class _WeightsAndBiases:
    """Run at Weights & Biases."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.path.resolve().name,
            dir=str(folder.path),
            config=dict(settings),
            id=_known_id(folder, "wandb"),
            resume="allow",
        )
        _remember_id(folder, "wandb", self._run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """Run at MLflow."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        known = _known_id(folder, "mlflow")
        run = mlflow.start_run(run_id=known, run_name=folder.path.resolve().name)
        if known is None:  # parameters of a run cannot be changed later
            mlflow.log_params(flat_settings(settings))
        _remember_id(folder, "mlflow", run.info.run_id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics({_NOT_FOR_MLFLOW.sub("_", name): value for name, value in numbers.items()}, step=step)

    def close(self, *, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


def _is_installed(name: ServiceName) -> bool:
    return importlib.util.find_spec(name) is not None


def _known_id(folder: RunFolder, name: ServiceName) -> str | None:
    """Id of this run at a service; None if it is not known there yet."""
    known = read_json(folder.services).get(name) if folder.services.exists() else None
    if known is not None and not (isinstance(known, str) and known.isprintable() and _ID.fullmatch(known)):
        raise ConfigError(f"{folder.services}: the id at {_TITLES[name]} is {shown(known)}; take the line out")
    return known


def _remember_id(folder: RunFolder, name: ServiceName, id_: str) -> None:
    known = read_json(folder.services) if folder.services.exists() else {}
    write_json(folder.services, {**known, name: id_})
