"""How many processes were started, against how many the Trainer knows of."""

import os
from typing import Final

import lightning as L

from lit_ift.errors import UserError

LAUNCHERS: Final = {
    "TORCHELASTIC_RUN_ID": ("torchrun", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "SLURM_STEP_NUM_TASKS": ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
    "OMPI_COMM_WORLD_SIZE": ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "PMI_SIZE": ("mpirun", "PMI_SIZE", "MPI_LOCALNRANKS"),
}
"""A launcher's mark in the environment: its name, and the variables for its processes, in all and on this node."""


def check_processes(trainer: L.Trainer) -> None:
    """Refuse a run in which a launcher's processes would not know of each other.

    Raises:
        UserError: each process would train a model of its own, all into one folder.
    """
    for mark, (launcher, in_all, on_node) in LAUNCHERS.items():
        started = os.environ.get(in_all, "") if mark in os.environ else ""
        if started.isdecimal() and int(started) > trainer.world_size:
            here = os.environ.get(on_node, "")
            devices = int(here) if here.isdecimal() else int(started)
            raise UserError(
                f"{launcher} started {started} processes, but this run is made for {trainer.world_size}: each process "
                f"would train a model of its own, all into one folder. Set trainer.devices={devices} and "
                f"trainer.num_nodes={-(-int(started) // devices)}, or start a single process."
            )
