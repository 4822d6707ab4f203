-- Projections are built again where the program has another version of them than the database.

UPDATE de_format SET version = 5;

-- The version of a projection's tables, 0 where they are to be made anew; NULL for what is no projection.
ALTER TABLE de_subscriptions ADD COLUMN version BIGINT NULL;

-- A row here keeps the open transaction from being committed: by a handler that runs in it, and is not to end it.
CREATE TABLE de_guard (
    nobody BIGINT NOT NULL REFERENCES de_subscriptions (subscription_id) DEFERRABLE INITIALLY DEFERRED
);
