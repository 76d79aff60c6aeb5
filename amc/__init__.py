"""AMC makes a trained network fit a device.

import amc
run = amc.compress("resnet50", data="imagefolder:/data/imagenet", budget="1.2GFLOPs")
run.model                                   # nn.Module under the cap, fine-tuned
run.retarget("800MFLOPs").save("small/")    # no new search
model = amc.load("small/")                  # no pickle, no torch-pruning, no tracing
amc.load_cascade("runs/phone/cascade/budget-30%")  # easy inputs leave early: .run(inputs) gives answers, stages, costs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amc.job.api import compress as compress
    from amc.job.api import load as load
    from amc.job.api import load_cascade as load_cascade
    from amc.job.api import open_run as open_run

__all__ = ["compress", "load", "load_cascade", "open_run"]


def __getattr__(name: str) -> Any:
    """Import torch only when something is asked for: `amc --help` stays fast."""
    if name not in __all__:
        raise AttributeError(f"module 'amc' has no attribute {name!r}")
    from amc.job import api

    return getattr(api, name)
