"""Where trials are kept: an Optuna storage by URL, opened so that it lasts.

SQLite stays in its rollback journal: one file at rest, durable at power loss, and not bound to one host as its
write-ahead log is; writers wait for each other for up to a minute. PostgreSQL connections are tried before each use, so
that a server that came back is simply used again, and one that vanished without a word is noticed by keepalives.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from datetime import datetime
from time import monotonic, sleep
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models  # its tables: Optuna checks at opening that the database has this very schema
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from amc.errors import StorageError
from amc.files import explain_storage

OUTAGE_SECONDS = 300.0  # how long a storage that has gone is waited for
LONGEST_PAUSE = 15.0  # between two tries
LOCK_SECONDS = 60  # how long SQLite's writers wait for each other
CONNECT_SECONDS = 10
KEEPALIVE = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
SQL = ("sqlite", "postgresql", "mysql")
GRPC = "grpc://"

Answer = TypeVar("Answer")


def open_storage(url: str) -> BaseStorage:
    """The storage at an Optuna URL, or behind Optuna's gRPC proxy at grpc://HOST:PORT.

    Raises:
        StorageError: it cannot be reached, or the URL is none.
    """
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
        raise StorageError(explain_storage(place(url), _cause(error))) from error
    except (ImportError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise StorageError(f"`study` must be an Optuna storage URL, but {place(url)} gave: {first}") from None


def place(url: str) -> str:
    """The storage as it may be shown to anyone: without a password."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url.removeprefix("sqlite:///"))


def patiently(act: Callable[[], Answer], url: str, say: Callable[[str], None], patience: float | None = None) -> Answer:
    """What `act` returns; while the storage is gone it is tried again, for `patience` seconds at most.

    Whatever `act` wrote may be there already when it is tried again. What does not heal by itself, as a full disk, is
    told at once.

    Raises:
        StorageError: the storage did not come back.
    """
    pause, limit = 0.5, OUTAGE_SECONDS if patience is None else patience
    since: float | None = None
    while True:
        try:
            answer = act()
        except Exception as error:
            if not _from_storage(error):
                raise
            since = monotonic() if since is None else since
            if not _may_heal(error) or monotonic() - since > limit:
                raise StorageError(explain_storage(place(url), _cause(error))) from error
            if pause == 0.5:
                say(f"{place(url)} does not answer; trying again for up to {limit:.0f} s")
            sleep(min(pause, max(0.0, limit - (monotonic() - since)) + 0.01))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if since is not None:
                say(f"{place(url)} is back after {monotonic() - since:.0f} s")
            return answer


class Database(RDBStorage):
    """Optuna's own tables, with quick reads of many trials, and trials that are ended in one transaction."""

    def __init__(self, url: str) -> None:
        super().__init__(url, engine_kwargs=_engine_options(url))

    def end_trial(
        self,
        trial_id: int,
        state: TrialState,
        value: float | None,
        params: Mapping[str, tuple[int, BaseDistribution]],
        attributes: Mapping[str, Any],
        step: int | None,
    ) -> bool:
        """Write all that a trial gave, and its state, all or nothing; False if it was not running any more."""
        with Session(self.engine) as session, session.begin():
            running = (models.TrialModel.trial_id == trial_id) & (models.TrialModel.state == TrialState.RUNNING)
            taken = session.execute(update(models.TrialModel).where(running).values(state=state))
            if taken.rowcount != 1:  # type: ignore[attr-defined]  # an update has a row count
                return False
            session.get_one(models.TrialModel, trial_id).datetime_complete = datetime.now()
            rows: dict[Any, list[dict[str, Any]]] = {
                models.TrialParamModel: [
                    {"param_name": name, "param_value": number, "distribution_json": distribution_to_json(kind)}
                    for name, (number, kind) in params.items()
                ],
                models.TrialUserAttributeModel: [
                    {"key": key, "value_json": json.dumps(content)} for key, content in attributes.items()
                ],
            }
            if value is not None:
                kind = models.TrialValueModel.TrialValueType.FINITE
                rows[models.TrialValueModel] = [{"objective": 0, "value": value, "value_type": kind}]
            if step is not None:
                finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
                rows[models.TrialIntermediateValueModel] = [
                    {"step": step, "intermediate_value": value, "intermediate_value_type": finite}
                ]
            for table, content in rows.items():
                if content:
                    session.execute(insert(table), [{"trial_id": trial_id, **row} for row in content])
        return True

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """As Optuna's own, which makes an object of every row: here rows of one parameter share its distribution."""
        wanted: ColumnElement[bool] = models.TrialModel.trial_id > trial_id_greater_than
        if known := sorted(number for number in included_trial_ids if number <= trial_id_greater_than):
            wanted = or_(wanted, models.TrialModel.trial_id.in_(known))
        wanted = (models.TrialModel.study_id == study_id) & wanted
        with Session(self.engine) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            # The trials first: one that is finished has all its rows by then; and a parameter's kind after its rows.
            trials = session.scalars(select(models.TrialModel).where(wanted).order_by(models.TrialModel.trial_id)).all()
            trials = [trial for trial in trials if states is None or trial.state in states]
            if not trials:
                return []
            children = [_rows(session, wanted, *columns) for columns in _CHILDREN]
            kinds = _distributions(session, wanted)
            if kinds is None:  # a foreign study, in which a parameter's range changes
                return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
            shared = _Shared(kinds)
        return [_frozen(trial, shared, *(rows.get(int(trial.trial_id), {}) for rows in children)) for trial in trials]


_CHILDREN: tuple[tuple[Any, ...], ...] = (
    (models.TrialParamModel, "param_name", "param_value", "param_id"),
    (models.TrialValueModel, "objective", "value", "trial_value_id"),
    (models.TrialUserAttributeModel, "key", "value_json", "trial_user_attribute_id"),
    (models.TrialSystemAttributeModel, "key", "value_json", "trial_system_attribute_id"),
    (models.TrialIntermediateValueModel, "step", "intermediate_value", "trial_intermediate_value_id"),
)
Rows = dict[int, dict[Any, Any]]


class _Shared:
    """One table of distributions for all trials with the same parameters in the same order."""

    def __init__(self, kinds: dict[str, BaseDistribution]) -> None:
        self.kinds = kinds
        self._tables: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}

    def of(self, params: dict[str, float]) -> dict[str, BaseDistribution]:
        names = tuple(params)
        return self._tables.setdefault(names, {name: self.kinds[name] for name in names})


def _distributions(session: Session, wanted: ColumnElement[bool]) -> dict[str, BaseDistribution] | None:
    """Parameter -> its distribution; None where one has several, or a value is not a finite number."""
    table: Any = models.TrialParamModel.__table__.c
    query = select(table.param_name, table.distribution_json).join(models.TrialModel).where(wanted).distinct()
    found = session.execute(query).all()
    finite = select(models.TrialValueModel.value_type).join(models.TrialModel).where(wanted).distinct()
    odd = [kind for (kind,) in session.execute(finite) if kind.name != "FINITE"]
    if odd or len({name for name, _ in found}) < len(found):
        return None
    return {sys.intern(name): json_to_distribution(text) for name, text in found}


def _rows(session: Session, wanted: ColumnElement[bool], table: Any, key: str, content: str, order: str) -> Rows:
    """Trial -> key -> content, of one of the tables that hang on trials."""
    own = table.__table__.c  # its columns and not the class's: no object is made of a row
    query = select(own.trial_id, own[key], own[content]).join(models.TrialModel).where(wanted).order_by(own[order])
    found: Rows = defaultdict(dict)
    for trial_id, name, value in session.execute(query.execution_options(yield_per=10_000)):
        found[trial_id][sys.intern(name) if isinstance(name, str) else name] = value
    return found


def _frozen(
    trial: Any,
    shared: _Shared,
    params: dict[str, float],
    values: dict[int, float],
    user_attrs: dict[str, str],
    system_attrs: dict[str, str],
    reports: dict[int, float],
) -> FrozenTrial:
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=[values[objective] for objective in sorted(values)] or None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={name: shared.kinds[name].to_external_repr(number) for name, number in params.items()},
        distributions=shared.of(params),
        user_attrs={key: json.loads(text) for key, text in user_attrs.items()},
        system_attrs={key: json.loads(text) for key, text in system_attrs.items()},
        intermediate_values=reports,
        trial_id=trial.trial_id,
    )


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


def _engine_options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": LOCK_SECONDS}}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if re.match(r"postgresql(\+psycopg2?)?://", url):  # drivers on libpq
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS, **KEEPALIVE}
    return options


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
