-- Takes the log away, with every event in it.
DROP VIEW de_log;
DROP TABLE de_events;
DROP TABLE de_aggregates;
DROP TABLE de_event_types;
DROP TABLE de_format;
