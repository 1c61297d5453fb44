"""What `empty_replicas` imitates where tests need replicas that compute nothing."""

from nfold.deployments.addresses import ReplicaAddress

MAX_MODEL_LEN = 256


def like() -> ReplicaAddress:
    return ReplicaAddress(
        replica_id="r",
        model="m",
        pool="p",
        accelerator="none",
        node_id="",
        host="",
        ipc_endpoint="",
        tcp_endpoint="",
        max_num_seqs=64,
        max_model_len=MAX_MODEL_LEN,
        tp=1,
    )
