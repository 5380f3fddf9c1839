"""Numbers of a training for TensorBoard, through the optional package ``tensorboard``, imported only here."""

from pathlib import Path

from methods.core.errors import UserError
from specbench.util import files


class Board:
    """Writes to ``folder``, or nowhere."""

    def __init__(self, folder: Path | None):
        self._writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--log-dir needs the package tensorboard; install it with: pip install 'specbench[train]'") from None
        self._writer = SummaryWriter(str(files.folder(folder)))

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer:
            self._writer.close()
