"""Options of `detris train` that decide what the model card publishes."""

from __future__ import annotations

from tests.bad_inputs.cases_runs import option

CASES = [
    option("--card_image sometimes", "one of auto, always, never, got 'sometimes'"),
    option("--hub_benchmark org/cups:val", "user/dataset:task_id:metric", "got 'org/cups:val'"),
    option("--hub_benchmark org/cups:val:IoU", "one of mIoU, oIoU", "got 'org/cups:val:IoU'"),
]
