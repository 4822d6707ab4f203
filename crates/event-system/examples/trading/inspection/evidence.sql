-- What the files say, in tables that are quick to ask.

CREATE TABLE event AS
    SELECT e.position, hex(e.event_id) AS id, hex(e.causation_id) AS cause, t.event_type AS type,
           a.aggregate_type, a.aggregate_id AS market, e.version, CAST(e.payload AS TEXT) AS payload
    FROM log.de_events e
    JOIN log.de_event_types t USING (type_key)
    JOIN log.de_aggregates a USING (aggregate_key);
CREATE UNIQUE INDEX event_by_position ON event (position);
CREATE UNIQUE INDEX event_by_id ON event (id);
CREATE INDEX event_by_cause ON event (cause, type);
CREATE INDEX event_by_type ON event (type, market, position);

CREATE TABLE candle AS
    SELECT position, id, market, version, payload ->> 'time' AS time,
           payload ->> 'close' AS close, payload ->> 'volume' AS volume
    FROM event WHERE type = 'market.candle-closed';
CREATE INDEX candle_by_time ON candle (market, time);

-- Where the averages over 5 and 15 candles cross, worked out from the candles alone.
CREATE TABLE crossing AS
    WITH leading AS (
        SELECT id, market, time, version, row_number() OVER history AS number,
               3 * sum(close) OVER (history ROWS 4 PRECEDING)
                 - sum(close) OVER (history ROWS 14 PRECEDING) AS lead
        FROM candle WINDOW history AS (PARTITION BY market ORDER BY version)
    ), stepping AS (
        SELECT *, lag(lead) OVER (PARTITION BY market ORDER BY version) AS earlier FROM leading
    )
    SELECT id, market, time,
           CASE WHEN earlier <= 0 AND lead > 0 THEN 'above' ELSE 'below' END AS direction
    FROM stepping
    WHERE number > 15 AND (earlier <= 0 AND lead > 0 OR earlier >= 0 AND lead < 0);
CREATE INDEX crossing_by_id ON crossing (id);

CREATE TABLE execution AS
    SELECT position, id, market, payload ->> 'side' AS side,
           payload ->> 'amount' AS amount, payload ->> 'fee' AS fee
    FROM event WHERE type = 'trading.order-executed';

-- A book that only buys first is long after every purchase and flat after every sale. So an
-- execution does something where its side is not that of the one before.
CREATE TABLE booking AS
    WITH following AS (
        SELECT *, lag(side, 1, 'sell') OVER history AS earlier
        FROM execution WINDOW history AS (PARTITION BY market ORDER BY position)
    )
    SELECT position, id, market, side, amount, fee,
           CASE WHEN side = earlier THEN 'nothing' WHEN side = 'buy' THEN 'opened'
                ELSE 'closed' END AS kind
    FROM following;
CREATE UNIQUE INDEX booking_by_position ON booking (position);

CREATE TABLE fill AS
    SELECT position, market,
           CASE WHEN outcome = '"nothing"' THEN 'nothing' WHEN outcome ->> 'opened' IS NOT NULL
                THEN 'opened' ELSE 'closed' END AS kind
    FROM desk.fills;
CREATE UNIQUE INDEX fill_by_position ON fill (position);

CREATE TABLE dead_letter AS
    SELECT s.name AS subscription, d.position
    FROM log.de_dead_letters d JOIN log.de_subscriptions s USING (subscription_id);
CREATE INDEX dead_letter_by_delivery ON dead_letter (position, subscription);

-- Who wants what.
CREATE TABLE wanted (subscription TEXT, type TEXT);
INSERT INTO wanted VALUES
    ('strategy', 'market.candle-closed'),
    ('risk', 'trading.signal-generated'),
    ('broker', 'trading.order-approved'),
    ('portfolio', 'trading.order-executed');
INSERT INTO wanted SELECT DISTINCT 'audit', type FROM event;

-- Filled by the program: the candles it was given, the trace, the exchange's answers, the figures
-- of the system in this run.
CREATE TABLE input (market TEXT, time TEXT, close INTEGER, volume INTEGER);
CREATE TABLE sighting (
    number INTEGER PRIMARY KEY, run INTEGER, subscription TEXT, aggregate_type TEXT, market TEXT,
    position INTEGER, attempt INTEGER
);
CREATE TABLE this_run (run INTEGER);
CREATE INDEX sighting_by_delivery ON sighting (position, subscription, attempt);
CREATE TABLE fate (position INTEGER PRIMARY KEY, fate TEXT);
CREATE TABLE counted (subscription TEXT, done INTEGER, retries INTEGER, waiting INTEGER);
