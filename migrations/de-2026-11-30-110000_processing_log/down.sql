-- Takes away the processing log.
DROP TABLE de_processing;
UPDATE de_format SET version = 2;
