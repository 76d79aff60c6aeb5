"""Optuna's own tables in a SQL database, read quickly and written whole.

SQLite stays in its rollback journal: one file at rest, durable at power loss, and not bound to one host as its
write-ahead log is; writers wait for each other for up to a minute. PostgreSQL connections are tried before each use, so
that a server that came back is simply used again, and one that vanished without a word is noticed by keepalives.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Container, Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models  # its tables: Optuna checks at opening that the database has this very schema
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.orm import Session

LOCK_SECONDS = 60  # how long SQLite's writers wait for each other
CONNECT_SECONDS = 10
KEEPALIVE = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


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


def _engine_options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": LOCK_SECONDS}}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if re.match(r"postgresql(\+psycopg2?)?://", url):  # drivers on libpq
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS, **KEEPALIVE}
    return options
