"""MLCommons' description of a system, as far as a run record knows it."""

from .record import RunRecord

UNKNOWN = ""

# Fields that must be there, and those of them that must say something (submission_checker/constants.py, v6.0).
FIELDS = (
    *("division", "submitter", "status", "system_name", "number_of_nodes", "host_processor_model_name"),
    *("host_processors_per_node", "host_processor_core_count", "host_memory_capacity", "host_storage_capacity"),
    *("host_storage_type", "accelerators_per_node", "accelerator_model_name", "accelerator_memory_capacity"),
    *("framework", "operating_system", "system_type", "other_software_stack", "host_processor_frequency"),
    *("host_processor_caches", "host_memory_configuration", "host_processor_interconnect", "host_networking"),
    *("host_networking_topology", "accelerator_frequency", "accelerator_host_interconnect"),
    *("accelerator_interconnect", "accelerator_interconnect_topology", "accelerator_memory_configuration"),
    *("accelerator_on-chip_memories", "cooling", "hw_notes", "sw_notes", "host_network_card_count"),
    "system_type_detail",
)
MAY_BE_EMPTY = frozenset(
    (
        *("host_processor_frequency", "host_processor_caches", "host_processor_interconnect"),
        *("accelerator_frequency", "accelerator_interconnect_topology", "accelerator_on-chip_memories"),
        *("hw_notes", "sw_notes", "system_type_detail"),
    )
)


def system_description(
    record: RunRecord, system: str, division: str, submitter: str
) -> tuple[dict[str, str], list[str]]:
    """
    Returns:
        The description with every field, and those that a person must still fill in.
    """
    point = record.whole
    healthy = [node.healthy for node in record.nodes if node.name in point.nodes]
    known = {
        "division": division,
        "submitter": submitter,
        "system_name": system,
        "system_type": "datacenter",
        "number_of_nodes": str(point.num_nodes),
        "accelerators_per_node": str(max(healthy, default=0)),
        "accelerator_model_name": record.model.accelerator,
        "framework": f"nfold {record.provenance.versions.get('nfold', '')}, {record.model.engine} engine",
        "other_software_stack": ", ".join(
            f"{name} {version}" for name, version in record.provenance.versions.items() if name != "nfold"
        ),
        "sw_notes": "SIMULATED: no tokens were computed" if record.simulated else "",
    }
    if record.hosts:
        host = record.hosts[0]
        known |= {
            "host_processor_model_name": host.cpu,
            "host_processor_core_count": str(host.num_cores),
            "host_memory_capacity": f"{host.memory_bytes / 2**30:.0f} GiB",
            "operating_system": f"{host.system}, {host.kernel}",
        }
        if host.driver or host.runtime:
            versions = (("driver", host.driver), ("runtime", host.runtime))
            known["other_software_stack"] += ", " + ", ".join(f"{name} {each}" for name, each in versions if each)
        if "core" in host.clocks_mhz:
            known["accelerator_frequency"] = f"{host.clocks_mhz['core']} MHz"
    if len({(host.cpu, host.memory_bytes) for host in record.hosts}) > 1:
        known["hw_notes"] = "hosts differ; the first is described"
    description = {field: known.get(field, UNKNOWN) for field in FIELDS}
    return description, [field for field in FIELDS if not description[field] and field not in MAY_BE_EMPTY]
