"""Where trials are kept: an Optuna storage by URL, and the patience to wait for one that has gone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from amc.study.database import CONNECT_SECONDS, Database
from amc.system.errors import StorageError
from amc.system.files import explain_storage
from amc.system.interrupts import uninterrupted

OUTAGE_SECONDS = 300.0  # how long a storage that has gone is waited for
LONGEST_PAUSE = 15.0  # between two tries
MEMORY = "memory:"  # a storage that lives and dies with this process
SQL = ("sqlite", "postgresql", "mysql")
GRPC = "grpc://"

Answer = TypeVar("Answer")


def open_storage(url: str) -> BaseStorage:
    """The storage at an Optuna URL, or behind Optuna's gRPC proxy at grpc://HOST:PORT.

    Raises:
        StorageError: it cannot be reached, or the URL is none.
    """
    if url == MEMORY:
        return optuna.storages.InMemoryStorage()
    try:
        if url.startswith(GRPC):
            return _proxy(url)
        try:
            return optuna.storages.get_storage(Database(url) if url.startswith(SQL) else url)
        except SQLAlchemyError as error:
            if not re.search("already exists|duplicate key|UNIQUE constraint", str(error)):
                raise
            return optuna.storages.get_storage(Database(url))  # another process was making the tables
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise StorageError(_explained(url, error)) from error
    except (ImportError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise StorageError(f"`study` must be an Optuna storage URL, but {place(url)} gave: {first}") from None


def study_url(folder: Path) -> str:
    """The SQLite file of a run folder."""
    return f"sqlite:///{(folder / 'study.db').absolute()}"


def shared_study_url() -> str:
    """The SQLite file of all studies of this user, in the platform's data folder."""
    from platformdirs import user_data_path

    folder = user_data_path("amc")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(explain_storage(folder, error)) from error
    return f"sqlite:///{folder / 'studies.db'}"


def place(url: str) -> str:
    """The storage as it may be shown to anyone: without a password."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url.removeprefix("sqlite:///"))


def patiently(act: Callable[[], Answer], url: str, say: Callable[[str], None], patience: float | None = None) -> Answer:
    """What `act` returns; while the storage is gone it is tried again, for `patience` seconds at most.

    Whatever `act` wrote may be there already when it is tried again. What does not heal by itself, as a full disk, is
    raised at once.

    Raises:
        StorageError: the storage did not come back.
    """
    pause, limit = 0.5, OUTAGE_SECONDS if patience is None else patience
    since: float | None = None
    while True:
        try:
            with uninterrupted():
                answer = act()
        except Exception as error:
            if not _from_storage(error):
                raise
            since = monotonic() if since is None else since
            if not _may_heal(error) or monotonic() - since > limit:
                raise StorageError(_explained(url, error)) from error
            if pause == 0.5:
                say(f"{place(url)} does not answer; trying again for up to {limit:.0f} s")
            sleep(min(pause, max(0.0, limit - (monotonic() - since)) + 0.01))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if since is not None:
                say(f"{place(url)} is back after {monotonic() - since:.0f} s")
            return answer


def end_trial(
    storage: BaseStorage,
    trial_id: int,
    state: TrialState,
    value: float | None = None,
    params: Mapping[str, tuple[int, BaseDistribution]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> bool:
    """End a running trial with all that it gave; its state comes last, so that none is ever seen half-written.

    Returns False if the trial was not running any more: another process took it for dead.
    """
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, Database):
        return backend.end_trial(trial_id, state, value, params or {}, attributes or {}, step)
    try:
        for name, (number, kind) in (params or {}).items():
            storage.set_trial_param(trial_id, name, kind.to_internal_repr(number), kind)
        for key, content in (attributes or {}).items():
            storage.set_trial_user_attr(trial_id, key, content)
        if step is not None and value is not None:
            storage.set_trial_intermediate_value(trial_id, step, value)
        return storage.set_trial_state_values(trial_id, state, None if value is None else [value])
    except UpdateFinishedTrialError:
        return False


def _proxy(url: str) -> BaseStorage:
    host, colon, port = url.removeprefix(GRPC).rstrip("/").rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ValueError("a gRPC proxy is written grpc://HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=CONNECT_SECONDS)
    except ImportError:
        raise ImportError("a gRPC proxy needs grpcio and protobuf: pip install grpcio protobuf") from None
    return proxy


def _from_storage(error: BaseException) -> bool:
    return isinstance(error, (SQLAlchemyError, StorageInternalError)) or _is_rpc(error)


def _is_rpc(error: BaseException) -> bool:
    return any(kind.__module__.split(".")[0] == "grpc" for kind in type(error).__mro__)


def _may_heal(error: BaseException) -> bool:
    """Whether waiting helps: a server that is away or starting, a lock; not a full disk or a broken file."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if _is_rpc(error):
        return True
    text = str(error)
    if re.search("full|No space left", text) or not isinstance(error, DBAPIError):
        return False
    if "sqlite3" in text:
        return "locked" in text or "busy" in text
    return error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))


def _explained(url: str, error: BaseException) -> str:
    """One line: a damaged file is told from one that cannot be written."""
    cause = _cause(error)
    if re.search("not a database|malformed|no such (table|column)|corrupt", str(cause)):
        return (
            f"a study must be a whole Optuna database, but {place(url)} is damaged ({cause}); restore it from a copy, "
            "or move it away, and the same command measures anew"
        )
    return explain_storage(place(url), cause)


def _cause(error: BaseException) -> BaseException:
    """The database driver's own words, on one line, which name the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if re.search("full|No space left", text):
        return OSError(28, "disk full")
    details = getattr(error, "details", None)
    if callable(details):  # gRPC
        text = str(details())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return OSError(lines[0] if lines else type(error).__name__)
