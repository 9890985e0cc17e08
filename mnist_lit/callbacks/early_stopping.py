"""Lightning's early stopping, for runs that are resumed."""

import lightning as L
from lightning.pytorch import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Ends a run when `monitor` has not improved for `patience` validations, and a resumed run where it had ended.

    Lightning restores how long nothing improved, but not what had followed from it: one more epoch would be trained.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once what had been stopped."""
        if self.stopping_reason_message:
            trainer.should_stop = True
