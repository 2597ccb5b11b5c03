-- Which principal was served when: the one whose turn is longest ago comes next.
CREATE TABLE turns (
    owner TEXT PRIMARY KEY,
    turn INTEGER NOT NULL
) WITHOUT ROWID;

-- Of a job among those of its owner; higher goes first, by so many places.
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_owner_and_state ON jobs (owner, state);
-- All that choosing the next job looks at, so that it reads no specs.
CREATE INDEX jobs_waiting ON jobs (device, owner, priority) WHERE state = 'QUEUED';

-- By owner, since the time that a check takes must not tell whether somebody else has the same file. They are found anew.
DROP TABLE summaries;
CREATE TABLE summaries (
    owner TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    kind TEXT NOT NULL,
    summary TEXT NOT NULL,
    PRIMARY KEY (owner, sha256, kind)
) WITHOUT ROWID;
