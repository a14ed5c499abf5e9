"""Where the rows of `metrics.csv` also go: loggers of Fabric and Lightning, imported only when asked for."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger


def check_logger(name: str) -> None:
    """Raises ValueError if the package of the logger is not installed."""
    if name != "csv" and importlib.util.find_spec(name) is None:
        raise ValueError(f"--logger {name} needs a package that is not installed: pip install {name}")


def make_loggers(name: str, out_dir: Path, resume_step: int | None) -> "list[Logger]":
    """Loggers besides `metrics.csv`, which is always written: none or one. What they keep on disk lies in `out_dir`.

    Args:
        resume_step: TensorBoard forgets what it has of later steps, which are made again.
    """
    if name == "tensorboard":
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        purge_step = None if resume_step is None else resume_step + 1
        return [TensorBoardLogger(out_dir, name="tensorboard", version="", purge_step=purge_step)]
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(project="lit_llm", name=out_dir.name, save_dir=out_dir)]
    if name == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        return [MLFlowLogger(experiment_name="lit_llm", run_name=out_dir.name, save_dir=str(out_dir / "mlruns"))]
    return []
