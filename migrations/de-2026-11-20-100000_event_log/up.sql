-- The log is the truth of the system: every event that was accepted has one row, in the order of the commits.

-- Says that the tables are ours, and in which format; a program refuses a format newer than it knows.
CREATE TABLE de_format (
    application TEXT NOT NULL,
    version BIGINT NOT NULL
);
INSERT INTO de_format (application, version) VALUES ('domain-events', 1);

-- Names are kept once: a text in every event and index entry would cost most of the writing time.
CREATE TABLE de_event_types (
    type_key INTEGER PRIMARY KEY NOT NULL,
    event_type TEXT NOT NULL
);
CREATE UNIQUE INDEX de_event_types_by_name ON de_event_types (event_type);

-- The last version has a row of its own, so that a pruned history goes on where it was.
CREATE TABLE de_aggregates (
    aggregate_key INTEGER PRIMARY KEY NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    head_version BIGINT NOT NULL
);
CREATE UNIQUE INDEX de_aggregates_by_name ON de_aggregates (aggregate_type, aggregate_id);

-- AUTOINCREMENT, because positions never restart, not even in a log that was pruned to nothing.
-- Ids are 16 bytes, times are microseconds since 1970 in UTC; urgency is 0 low, 1 normal, 2 high.
CREATE TABLE de_events (
    position INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    event_id BLOB NOT NULL,
    type_key BIGINT NOT NULL,
    aggregate_key BIGINT NOT NULL,
    version BIGINT NOT NULL,
    schema_version BIGINT NOT NULL,
    urgency BIGINT NOT NULL,
    payload BLOB NOT NULL,
    metadata TEXT NULL,
    correlation_id BLOB NOT NULL,
    causation_id BLOB NULL,
    occurred_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    checksum BIGINT NOT NULL
);
CREATE UNIQUE INDEX de_events_by_id ON de_events (event_id);
CREATE UNIQUE INDEX de_events_by_aggregate ON de_events (aggregate_key, version);
-- An event that begins a chain is found by its id.
CREATE INDEX de_events_by_correlation ON de_events (correlation_id) WHERE correlation_id <> event_id;

-- The log as a person reads it; no program of ours does. Times are exact, also before 1970.
CREATE VIEW de_log AS
SELECT
    e.position,
    lower(hex(e.event_id)) AS event_id,
    t.event_type,
    a.aggregate_type,
    a.aggregate_id,
    e.version,
    e.schema_version,
    CASE e.urgency WHEN 0 THEN 'low' WHEN 1 THEN 'normal' ELSE 'high' END AS urgency,
    CAST(e.payload AS TEXT) AS payload,
    e.metadata,
    lower(hex(e.correlation_id)) AS correlation_id,
    lower(hex(e.causation_id)) AS causation_id,
    strftime('%Y-%m-%dT%H:%M:%S', (e.occurred_at - (e.occurred_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
        || printf('.%06dZ', (e.occurred_at % 1000000 + 1000000) % 1000000) AS occurred_at,
    strftime('%Y-%m-%dT%H:%M:%S', (e.recorded_at - (e.recorded_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
        || printf('.%06dZ', (e.recorded_at % 1000000 + 1000000) % 1000000) AS recorded_at
FROM de_events AS e
LEFT JOIN de_event_types AS t ON t.type_key = e.type_key
LEFT JOIN de_aggregates AS a ON a.aggregate_key = e.aggregate_key;
