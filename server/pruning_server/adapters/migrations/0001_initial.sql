-- Times are seconds since the epoch, UTC. Values (spec, labels, progress, ...) are JSON text.

CREATE TABLE jobs (
    -- Order of submission, which is the order of the queue whatever the clock did meanwhile.
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    request_id TEXT NOT NULL,
    spec TEXT NOT NULL,
    labels TEXT NOT NULL,
    device TEXT NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('QUEUED', 'RUNNING', 'CANCELLING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    attempt INTEGER NOT NULL CHECK (attempt >= 0 AND attempt <= max_attempts),
    max_attempts INTEGER NOT NULL,
    create_time REAL NOT NULL,
    start_time REAL,
    end_time REAL,
    expire_time REAL,
    progress TEXT,
    failure TEXT,
    result TEXT,
    last_sequence INTEGER NOT NULL,
    -- Set while a server runs the job.
    lease_owner TEXT,
    leased_device TEXT,
    -- Stored events of the two kinds that are bounded: progress per attempt, log lines per job.
    progress_events INTEGER NOT NULL DEFAULT 0,
    log_events INTEGER NOT NULL DEFAULT 0,
    UNIQUE (owner, request_id),
    CHECK ((lease_owner IS NOT NULL) = (state IN ('RUNNING', 'CANCELLING'))),
    CHECK ((end_time IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')))
);
CREATE INDEX jobs_by_state ON jobs (state, ordinal);
CREATE INDEX jobs_by_owner ON jobs (owner, create_time, job_id);
CREATE INDEX jobs_by_expiry ON jobs (expire_time) WHERE expire_time IS NOT NULL;

-- The code compares state and attempt before it writes; this holds even where the code is wrong.
CREATE TRIGGER jobs_end_once BEFORE UPDATE ON jobs
WHEN OLD.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
BEGIN
    SELECT RAISE(ABORT, 'a job that has ended is never changed');
END;

CREATE TABLE events (
    job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL CHECK (sequence >= 1),
    time REAL NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;

CREATE TABLE artifacts (
    artifact_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    sha256 TEXT NOT NULL CHECK (length(sha256) = 64),
    size_bytes INTEGER NOT NULL CHECK (size_bytes > 0),
    committed_size_bytes INTEGER NOT NULL CHECK (committed_size_bytes BETWEEN 0 AND size_bytes),
    -- VERIFIED: all bytes are durable and proven, but perhaps not yet renamed to where they belong.
    stage TEXT NOT NULL CHECK (stage IN ('PENDING', 'VERIFIED', 'ACTIVE')),
    -- Whether a caller announced it; what only a job made goes with the job.
    announced INTEGER NOT NULL CHECK (announced IN (0, 1)),
    display_name TEXT NOT NULL,
    create_time REAL NOT NULL,
    expire_time REAL NOT NULL,
    UNIQUE (owner, kind, sha256, size_bytes),
    CHECK (stage = 'PENDING' OR committed_size_bytes = size_bytes)
);
CREATE INDEX artifacts_by_sha256 ON artifacts (sha256);
CREATE INDEX artifacts_by_owner ON artifacts (owner, create_time, artifact_id);
CREATE INDEX artifacts_by_expiry ON artifacts (expire_time);

-- Which artifacts a job reads and wrote. No foreign key to artifacts: a caller may delete what an ended job used.
CREATE TABLE job_artifacts (
    job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
    artifact_id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('input', 'result')),
    PRIMARY KEY (job_id, artifact_id, role)
) WITHOUT ROWID;
CREATE INDEX job_artifacts_by_artifact ON job_artifacts (artifact_id);

-- What the gate found, by content; read only through an artifact with that content.
CREATE TABLE summaries (
    sha256 TEXT NOT NULL,
    kind TEXT NOT NULL,
    summary TEXT NOT NULL,
    PRIMARY KEY (sha256, kind)
) WITHOUT ROWID;
