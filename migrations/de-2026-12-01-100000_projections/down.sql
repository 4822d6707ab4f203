DROP TABLE de_guard;
ALTER TABLE de_subscriptions DROP COLUMN version;
UPDATE de_format SET version = 4;
