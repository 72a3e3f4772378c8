"""Settings of the libraries beneath that they read when they are loaded, so that they must be made before."""

from __future__ import annotations

from collections.abc import MutableMapping


def settle(environment: MutableMapping[str, str]) -> None:
    """Put our settings into a process's environment; what a user has set stays.

    Args:
        environment: ``os.environ``, or that of a child.
    """
    # Threads that spin while they wait for each other make a step ten times as long as soon as another program wants
    # a core: on two cores beside a flowgraph encoding took 5 to 28 s in place of 1 to 2 s.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What the libraries remark on, such as a missing torchvision, is not the user's business; their errors are.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        environment.setdefault(f"{library}_VERBOSITY", "error")
