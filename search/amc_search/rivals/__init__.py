"""The methods of search that ours is compared with, each as its best users would run it.

SeerNet as published is `seernet.seernet`: it is given a predictor, which this package does not know.
"""

from amc_search.rivals.baselines import random, uniform
from amc_search.rivals.gaussian import gp_cei
from amc_search.rivals.population import evolution
from amc_search.rivals.problem import Method
from amc_search.rivals.samplers import nsga2, tpe
from amc_search.rivals.sensitivity import greedy
from amc_search.rivals.strategy import cmaes

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
