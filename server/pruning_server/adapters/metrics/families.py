"""Every metric that events feed: name, help, labels, buckets. `docs/metrics.md` lists them; a test compares both."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pruning_server.adapters.metrics import labels

_QUEUE_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
_RUN_BUCKETS = (1, 5, 15, 60, 180, 600, 1800, 3600, 7200, 21600, 86400)
_CANCEL_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30)
_SPARSITY_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_DROP_BUCKETS = (0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_TRANSFER_BUCKETS = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
_RPC_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_DATABASE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class JobFamilies:
    """Submissions, outcomes and durations of jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.submitted = Counter("pruning_jobs_submitted", "Jobs accepted.", ["strategy"], registry=registry)
        self.completed = Counter(
            "pruning_jobs_completed",
            "Jobs that reached a terminal state.",
            ["strategy", "device_type", "outcome", "reason"],
            registry=registry,
        )
        self.proof_failures = Counter(
            "pruning_proof_failures",
            "Jobs that failed because the pruned archive did not pass its proof.",
            ["strategy"],
            registry=registry,
        )
        self.attempts = Counter("pruning_job_attempts", "Runs started, retries included.", registry=registry)
        self.rejections = Counter("pruning_rejections", "Submissions turned away.", ["reason"], registry=registry)
        self.queue_wait = Histogram(
            "pruning_job_queue_wait_seconds",
            "Time from submission (or from the requeue of a lost run) to the start of a run.",
            ["device_type"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.duration = Histogram(
            "pruning_job_duration_seconds",
            "Time from a job's first start to its end, without the wait before it.",
            ["strategy", "outcome"],
            buckets=_RUN_BUCKETS,
            registry=registry,
        )
        self.cancel_latency = Histogram(
            "pruning_cancel_latency_seconds",
            "Time from the wish to cancel a running job to its worker being gone.",
            buckets=_CANCEL_BUCKETS,
            registry=registry,
        )
        self._initialize()

    def _initialize(self) -> None:
        # A counter that appears with its first event has no rate at that event: the known ones start at 0.
        for strategy in labels.STRATEGIES.values:
            self.submitted.labels(strategy)
            self.proof_failures.labels(strategy)
            for outcome in labels.OUTCOMES.values:
                reasons = labels.FAILURE_REASONS.values[1:] if outcome == "failed" else (labels.NO_REASON,)
                for reason in reasons:
                    self.completed.labels(strategy, "cpu", outcome, reason)
        for reason in labels.REJECTIONS.values:
            self.rejections.labels(reason)
        for outcome in labels.OUTCOMES.values:
            self.duration.labels("static", outcome)
        self.queue_wait.labels("cpu")


class RunFamilies:
    """What workers do: phases, throughput, quality, exits."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.phase_duration = Histogram(
            "pruning_job_phase_duration_seconds",
            "Time that a run spent in a phase.",
            ["phase"],
            buckets=_RUN_BUCKETS,
            registry=registry,
        )
        self.worker_exits = Counter(
            "pruning_worker_exits", "Worker processes that ended, by cause.", ["cause"], registry=registry
        )
        self.parameters_processed = Counter(
            "pruning_parameters_processed", "Prunable parameters judged.", ["strategy"], registry=registry
        )
        self.parameters_removed = Counter(
            "pruning_parameters_removed", "Parameters set to zero or removed.", ["strategy"], registry=registry
        )
        self.samples = Counter(
            "pruning_samples",
            "Samples that went through a model, training and evaluation apart.",
            ["phase", "device_type"],
            registry=registry,
        )
        self.sparsity = Histogram(
            "pruning_achieved_sparsity_ratio",
            "Fraction of the prunable parameters that a successful job removed.",
            ["strategy"],
            buckets=_SPARSITY_BUCKETS,
            registry=registry,
        )
        self.metric_drop = Histogram(
            "pruning_metric_drop_ratio",
            "Loss of the task's metric on the report split, original minus pruned; gains count as 0.",
            ["strategy"],
            buckets=_DROP_BUCKETS,
            registry=registry,
        )
        self._initialize()

    def _initialize(self) -> None:
        for phase in labels.PHASES.values:
            self.phase_duration.labels(phase)
        for cause in labels.EXIT_CAUSES.values:
            self.worker_exits.labels(cause)
        for phase in labels.SAMPLE_PHASES.values:
            self.samples.labels(phase, "cpu")
        for strategy in labels.STRATEGIES.values:
            self.parameters_processed.labels(strategy)
            self.parameters_removed.labels(strategy)
        self.sparsity.labels("static")
        self.metric_drop.labels("static")


class TransferFamilies:
    """Uploads and downloads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes = Counter(
            "pruning_transfer_bytes", "Bytes of artifacts moved.", ["direction", "transport"], registry=registry
        )
        self.in_progress = Gauge(
            "pruning_transfers_in_progress", "Transfers open now.", ["direction", "transport"], registry=registry
        )
        self.duration = Histogram(
            "pruning_transfer_duration_seconds",
            "Time that a transfer was open, whole or cut short.",
            ["direction"],
            buckets=_TRANSFER_BUCKETS,
            registry=registry,
        )
        self.resumes = Counter(
            "pruning_transfer_resumes", "Transfers that went on at an offset.", ["direction"], registry=registry
        )
        self.checksum_failures = Counter(
            "pruning_checksum_failures", "Bytes that did not match their checksum.", ["direction"], registry=registry
        )
        for direction in labels.DIRECTIONS.values:
            self.bytes.labels(direction, "grpc")
            self.in_progress.labels(direction, "grpc")
            self.duration.labels(direction)
            self.resumes.labels(direction)
            self.checksum_failures.labels(direction)


class RpcFamilies:
    """RPCs, under the names that gRPC dashboards know."""

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ["grpc_type", "grpc_service", "grpc_method"]
        self.started = Counter("grpc_server_started", "RPCs started.", method, registry=registry)
        self.handled = Counter("grpc_server_handled", "RPCs ended, by code.", [*method, "grpc_code"], registry=registry)
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time to answer an RPC; watches are left out, since they last as long as their job.",
            method,
            buckets=_RPC_BUCKETS,
            registry=registry,
        )
        self.received = Counter("grpc_server_msg_received", "Messages received.", method, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages sent.", method, registry=registry)


class DatabaseFamilies:
    """Transactions of the embedded database."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.duration = Histogram(
            "pruning_db_transaction_seconds",
            "Time of a transaction, the wait for the database included.",
            ["op"],
            buckets=_DATABASE_BUCKETS,
            registry=registry,
        )
        self.errors = Counter("pruning_db_errors", "Transactions that failed.", ["op"], registry=registry)
        for op in labels.DATABASE_OPERATIONS.values:
            self.duration.labels(op)
            self.errors.labels(op)
