"""Where to measure next, and the climb under a cap. Knows no model, file or CLI; a predictor only as a Protocol."""

from amc_search.acquisition import ACQUISITIONS as ACQUISITIONS
from amc_search.acquisition import ARMS as ARMS
from amc_search.ascent import Candidates as Candidates
from amc_search.ascent import climb as climb
from amc_search.design import random_policies as random_policies
from amc_search.design import starting_policies as starting_policies
from amc_search.moves import Bound as Bound
from amc_search.moves import exchange as exchange
from amc_search.moves import fill as fill
from amc_search.proposals import propose as propose
from amc_search.proposals import propose_by_arm as propose_by_arm
from amc_search.repair import CapUnreachable as CapUnreachable
from amc_search.repair import repair as repair
from amc_search.repair import uniform as uniform
from amc_search.repair import use_of as use_of
from amc_search.sampler import EvolutionarySampler as EvolutionarySampler
from amc_search.space import Cap as Cap
from amc_search.space import Cost as Cost
from amc_search.space import Policies as Policies
from amc_search.space import Predictor as Predictor
from amc_search.space import Space as Space
from amc_search.space import costs_of as costs_of
from amc_search.space import is_feasible as is_feasible
