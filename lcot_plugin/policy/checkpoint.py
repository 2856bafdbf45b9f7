"""What a GRPO checkpoint holds beside the Trainer's own files, as a mixin between the GRPO loop and the Trainer.

In: the loop's experience, replay buffer, moved reference, alarms, counts and metrics not yet logged. Out: files in the
checkpoint, and from them the same objects; nothing in a file is run when it is read (survival.records).

    grpo_state.pt            by the first process
    experience_rank0.pt      by each, where the checkpoint lies between the updates of one rollout
    metrics_rank0.json       by each, where steps were made since the last log
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcot_plugin.policy.dynamic_sampling import DynamicSamplingCounts
from lcot_plugin.policy.experience import Experience, MicroBatch
from lcot_plugin.policy.replay import StoredGroup
from lcot_plugin.survival.records import load_records, save_records
from lcot_plugin.survival.trainer import SurvivingTrainer

if TYPE_CHECKING:
    from lcot_plugin.policy.health import HealthMonitor
    from lcot_plugin.policy.metrics import MetricSums
    from lcot_plugin.policy.reference import ReferencePolicy
    from lcot_plugin.policy.replay import ReplayBuffer

EXPERIENCE_FILE = "experience_rank{rank}.pt"
STATE_FILE = "grpo_state.pt"
"""In every checkpoint: the replay buffer, a reference that was moved, what the alarms go by."""
METRICS_FILE = "metrics_rank{rank}.json"


class GrpoCheckpoints(SurvivingTrainer):
    """The attributes are made by GrpoTrainerMixin.setup_grpo."""

    parts: Any
    health: HealthMonitor
    metric_sums: MetricSums
    dynamic_sampling: DynamicSamplingCounts
    replay: ReplayBuffer[StoredGroup] | None
    reference: ReferencePolicy | None
    _experience: Experience | None
    _resumed_from: str | None
    _num_processes_saved: int | None = None
    """Of the checkpoint that was resumed from; None of an older version's."""
    _globalstep_last_logged: int
    """The Trainer's own."""

    def _boundary_state(self) -> dict[str, Any]:
        """A rollout adds groups to the replay buffer before its first update."""
        return {
            "dynamic_sampling": asdict(self.dynamic_sampling),
            "replay": None if self.replay is None else self.replay.state_dict(),
            "metrics": self.metric_sums.state(),
        }

    def _at_boundary(self) -> dict[str, Any]:
        boundary = self._boundary
        return self._boundary_state() if boundary is None else boundary.own

    def _save_beside(self, folder: Path) -> None:
        micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        if micro_step % self.parts.plan.micro_steps_per_rollout:
            # Between the updates of one rollout: a resumed run must go on with these completions, not with new ones.
            save_records(self._experience, self._experience_path(folder))
        metrics = self._metrics_left()
        if metrics:
            self._metrics_path(folder).write_text(json.dumps(metrics), encoding="utf-8")
        if self.args.should_save:
            save_records(self._state(), folder / STATE_FILE)

    def _metrics_left(self) -> dict[str, Any]:
        """Those of the steps since the last log."""
        if self._globalstep_last_logged == self.state.global_step:
            return {}
        return {name: [float(total), count] for name, (total, count) in self._at_boundary()["metrics"].items()}

    def _state(self) -> dict[str, Any]:
        moved = self.reference is not None and self.reference.moved
        kept = self._at_boundary()
        return {
            "num_processes": self.accelerator.num_processes,
            "health": self.health.state(),
            "dynamic_sampling": kept["dynamic_sampling"],
            "replay": kept["replay"],
            "reference": self.reference.state_dict() if moved and self.reference is not None else None,
        }

    def _load_state(self, checkpoint: str) -> None:
        """Raises ValueError where the file holds anything but our own records."""
        metrics = self._metrics_path(checkpoint)
        if metrics.is_file():
            self.metric_sums.take_up(json.loads(metrics.read_text(encoding="utf-8")))
        path = Path(checkpoint, STATE_FILE)
        if not path.is_file():
            return  # of a version that had none
        state = load_records(path, StoredGroup)
        self._num_processes_saved = state.get("num_processes")
        self.health.take_up(state["health"])
        self.dynamic_sampling = DynamicSamplingCounts(**state["dynamic_sampling"])
        if self.replay is not None and state["replay"] is not None:
            self.replay.load_state_dict(state["replay"])
        if self.reference is not None and state["reference"] is not None:
            self.reference.load_state_dict(state["reference"])

    def _experience_path(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint, EXPERIENCE_FILE.format(rank=self.accelerator.process_index))

    def _metrics_path(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint, METRICS_FILE.format(rank=self.accelerator.process_index))

    def _load_experience(self) -> Experience:
        path = self._experience_path(self._resumed_from or "")
        saved, now = self._num_processes_saved, self.accelerator.num_processes
        reason = None if path.exists() else f"{path} is missing"
        if saved not in (None, now):  # each would train on its own file, and on no other
            reason = f"by {saved} processes, now there are {now}"
        if reason is not None:
            raise ValueError(
                f"Cannot resume from {self._resumed_from}: it was saved between the updates of one rollout, and "
                f"{reason}. Resume with the number of processes it was saved with, or from another checkpoint."
            )
        return load_records(path, Experience, MicroBatch)
