"""The training service's settings; the only list of the VPLAB_TRAINING_* variables beside the frame's."""

from vplab.runtime.settings import ServerSettings


class TrainingConfig(ServerSettings, env_prefix="VPLAB_TRAINING_"):
    """What the training service can be told from outside."""

    listen: str = "127.0.0.1:7304"
    """``host:port`` or ``unix:/path``."""
