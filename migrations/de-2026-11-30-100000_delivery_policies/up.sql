-- What follows a dead letter, and what becomes of it, has to outlast the run: who is paused, what is parked behind
-- which letter, which letters are delivered again or settled, and what was running when a run ended uncleanly.

UPDATE de_format SET version = 2;

-- Why a subscription is paused: 'asked' or 'dead-letter'.
ALTER TABLE de_subscriptions ADD COLUMN paused TEXT NULL;

-- A dead letter that is delivered again waits like any other delivery, and goes on as one after a restart.
ALTER TABLE de_waiting ADD COLUMN is_replay BOOLEAN NOT NULL DEFAULT FALSE;

-- The id of the event behind whose dead letter the aggregate is parked.
ALTER TABLE de_blocked ADD COLUMN parked_behind BLOB NULL;

-- Up to here a delivery may be a repeat, also after a clean end that has left something in the log.
ALTER TABLE de_runs ADD COLUMN repeats_through BIGINT NOT NULL DEFAULT 0;

-- A letter that was replayed or discarded stays, as the record of that; the delivery may die once more.
ALTER TABLE de_dead_letters ADD COLUMN settled_at BIGINT NULL;
ALTER TABLE de_dead_letters ADD COLUMN settled_as TEXT NULL;
ALTER TABLE de_dead_letters ADD COLUMN note TEXT NULL;
DROP INDEX de_dead_letters_by_delivery;
CREATE UNIQUE INDEX de_dead_letters_by_delivery ON de_dead_letters (subscription_id, position) WHERE settled_at IS NULL;

-- Deliveries that may be repeats and were started: one that was running at several unclean ends in a row is what
-- ends the process. An end counts only for what its own run had started.
CREATE TABLE de_started (
    subscription_id BIGINT NOT NULL REFERENCES de_subscriptions (subscription_id),
    position BIGINT NOT NULL,
    unclean_ends BIGINT NOT NULL,
    is_running BOOLEAN NOT NULL,
    PRIMARY KEY (subscription_id, position)
) WITHOUT ROWID;
