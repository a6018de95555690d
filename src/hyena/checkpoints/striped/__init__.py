"""StripedHyena-7B, Evo 1 and Evo 2: the authors' configs and weights."""

from hyena.checkpoints.striped.config import striped_hyena_config
from hyena.checkpoints.striped.load import LoadingPlan, load_striped_hyena, striped_hyena_plan
from hyena.checkpoints.striped.published import PUBLISHED

__all__ = ["PUBLISHED", "LoadingPlan", "load_striped_hyena", "striped_hyena_config", "striped_hyena_plan"]
