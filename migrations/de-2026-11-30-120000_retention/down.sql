DROP INDEX de_dead_letters_by_position;
DROP TABLE de_retention;
UPDATE de_format SET version = 3;
