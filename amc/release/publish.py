from typing import Any
def publish(folder: Any, dense: Any, study: Any, predictor: Any, metrics: Any) -> None:
    pass
