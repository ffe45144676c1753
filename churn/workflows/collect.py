"""Collecting model versions: deletes old ones that no alias and no batch names, with their files."""

import logging
from datetime import datetime

from churn.database.events import ModelEvents
from churn.database.predictions import PredictionStore
from churn.registry.registry import Registry

logger = logging.getLogger(__name__)


def collect_versions(registry: Registry, store: PredictionStore, events: ModelEvents, before: datetime) -> list[str]:
    """Delete the versions that were registered before a time and that no alias, pending move or stored batch names.

    Each is deleted under its variant's lock, so that nobody moves an alias to it meanwhile; the version goes after its
    files, so that a repeat completes what was killed. Returns what was deleted, such as ``geography-us v3``.
    """
    named, collected = store.versions_named(), []
    for variant, version in registry.versions_before(before):
        if (variant.key, version) not in named:
            with events.recording(variant):
                if registry.delete_version(variant, version):
                    collected.append(f"{variant.key} v{version}")
    logger.info("model versions deleted: %s", ", ".join(collected) or "none")
    return collected
