-- The processing log says what became of each attempt that it keeps, for whoever looks for the reason of a failure; it
-- is no part of what is promised, and the oldest rows go.

UPDATE de_format SET version = 3;

-- Results are 'handled', 'skipped', 'failed' and 'unreadable'; times are microseconds.
CREATE TABLE de_processing (
    processing_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    subscription TEXT NOT NULL,
    event_id BLOB NOT NULL,
    position BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    result TEXT NOT NULL,
    note TEXT NULL,
    ended_at BIGINT NOT NULL,
    took BIGINT NOT NULL
);
