-- Takes away what outlasts a run of pauses, parking, replays and starts; settled letters go, as they would be open again.
DROP TABLE de_started;
DELETE FROM de_dead_letters WHERE settled_at IS NOT NULL;
DROP INDEX de_dead_letters_by_delivery;
CREATE UNIQUE INDEX de_dead_letters_by_delivery ON de_dead_letters (subscription_id, position);
ALTER TABLE de_runs DROP COLUMN repeats_through;
ALTER TABLE de_dead_letters DROP COLUMN note;
ALTER TABLE de_dead_letters DROP COLUMN settled_as;
ALTER TABLE de_dead_letters DROP COLUMN settled_at;
ALTER TABLE de_blocked DROP COLUMN parked_behind;
ALTER TABLE de_waiting DROP COLUMN is_replay;
ALTER TABLE de_subscriptions DROP COLUMN paused;
UPDATE de_format SET version = 1;
