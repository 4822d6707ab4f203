-- Projections are built again where the program has another version of them than the database.

UPDATE de_format SET version = 5;

-- The version of a projection's tables, 0 where they are to be made anew; NULL for what is no projection.
ALTER TABLE de_subscriptions ADD COLUMN version BIGINT NULL;
