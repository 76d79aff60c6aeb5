"""The methods of search that ours is compared with, each as its best users would run it.

SeerNet as published is `seernet.seernet`: it is given a predictor, which this package does not know.
"""

from amc_search.baselines.cma_es import cmaes
from amc_search.baselines.gaussian_process import gp_cei
from amc_search.baselines.genetic import evolution
from amc_search.baselines.greedy import greedy
from amc_search.baselines.naive import random, uniform
from amc_search.baselines.optuna_samplers import nsga2, tpe
from amc_search.baselines.problem import Method

METHODS: dict[str, Method] = {
    "uniform": uniform,
    "random": random,
    "tpe": tpe,
    "nsga2": nsga2,
    "greedy": greedy,
    "evolution": evolution,
    "cmaes": cmaes,
    "gp-cei": gp_cei,
}
