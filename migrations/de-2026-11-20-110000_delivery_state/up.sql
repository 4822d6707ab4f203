-- What is known of deliveries. A success has no row: a subscription says how far it has come, and only what deviates
-- (a delivery that waits, an aggregate that is blocked, a dead letter) is kept one by one.

-- Progress: each position up to "through" is finished, covered by an exception below, or one of "unfinished"
-- (ascending, each as LEB128 of the difference to the one before).
CREATE TABLE de_subscriptions (
    subscription_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name TEXT NOT NULL,
    through BIGINT NOT NULL,
    unfinished BLOB NOT NULL
);
CREATE UNIQUE INDEX de_subscriptions_by_name ON de_subscriptions (name);

-- Deliveries that failed and will be attempted again: the count survives a restart.
CREATE TABLE de_waiting (
    subscription_id BIGINT NOT NULL REFERENCES de_subscriptions (subscription_id),
    position BIGINT NOT NULL,
    aggregate_key BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    first_attempt_at BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    last_error TEXT NOT NULL,
    PRIMARY KEY (subscription_id, position)
) WITHOUT ROWID;

-- One row for a blocked aggregate, however many events wait behind it: they are read back from the log.
CREATE TABLE de_blocked (
    subscription_id BIGINT NOT NULL REFERENCES de_subscriptions (subscription_id),
    aggregate_key BIGINT NOT NULL,
    from_position BIGINT NOT NULL,
    from_version BIGINT NOT NULL,
    PRIMARY KEY (subscription_id, aggregate_key)
) WITHOUT ROWID;

-- Deliveries given up, kept for a person.
CREATE TABLE de_dead_letters (
    dead_letter_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    subscription_id BIGINT NOT NULL REFERENCES de_subscriptions (subscription_id),
    position BIGINT NOT NULL,
    reason TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    error TEXT NOT NULL,
    first_attempt_at BIGINT NOT NULL,
    dead_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX de_dead_letters_by_delivery ON de_dead_letters (subscription_id, position);

-- A run without an end did not end cleanly, so the next one may repeat deliveries.
CREATE TABLE de_runs (
    run_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT NULL
);
