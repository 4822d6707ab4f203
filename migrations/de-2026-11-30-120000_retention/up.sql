-- The log can be pruned, and whoever asks for what is gone has to be refused: where it is kept from is known, also
-- when nothing is left in it.

UPDATE de_format SET version = 4;

-- One row. Events up to here are gone, but for those of dead letters that are not settled.
CREATE TABLE de_retention (
    pruned_through BIGINT NOT NULL
);
INSERT INTO de_retention (pruned_through) VALUES (0);

-- What is pruned must not be the event of a dead letter.
CREATE INDEX de_dead_letters_by_position ON de_dead_letters (position);
