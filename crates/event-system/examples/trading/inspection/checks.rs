//! What must hold after a run, each with the question whose answers contradict it.

/// What a contradiction means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An event, or a consequence of one, is missing.
    Lost,
    /// A subscription saw the events of an aggregate out of order.
    Order,
    /// Something is there twice, or without a reason.
    Surplus,
    /// The system's figures are not those of the files.
    Figures,
}

/// A statement, and the SQL whose rows contradict it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    pub(super) kind: Kind,
    pub(super) what: &'static str,
    pub(super) against: &'static str,
}

const fn check(kind: Kind, what: &'static str, against: &'static str) -> Check {
    Check {
        kind,
        what,
        against,
    }
}

pub(super) const CHECKS: &[Check] = &[
    check(
        Kind::Lost,
        "every input candle is in the log",
        "
        SELECT i.market || ' ' || i.time AS text
        FROM input i LEFT JOIN candle c ON c.market = i.market AND c.time = i.time
        WHERE c.close IS NOT i.close OR c.volume IS NOT i.volume",
    ),
    check(
        Kind::Lost,
        "the log has no gap",
        "
        SELECT 'before ' || position AS text
        FROM (SELECT position, lag(position, 1, 0) OVER (ORDER BY position) AS earlier FROM event)
        WHERE position <> earlier + 1
        UNION ALL
        SELECT 'before version ' || version || ' of ' || market
        FROM (SELECT aggregate_type, market, version, lag(version, 1, 0) OVER (
                  PARTITION BY aggregate_type, market ORDER BY position) AS earlier FROM event)
        WHERE version <> earlier + 1",
    ),
    check(
        Kind::Lost,
        "every event was seen by everyone who wants it",
        "
        SELECT w.subscription || ' ' || e.position AS text
        FROM wanted w JOIN event e USING (type)
        WHERE NOT EXISTS (SELECT 1 FROM sighting s
                          WHERE s.position = e.position AND s.subscription = w.subscription)",
    ),
    check(
        Kind::Lost,
        "every cross has its trigger and its signal",
        "
        SELECT c.market || ' ' || c.time AS text FROM crossing c
        WHERE NOT EXISTS (SELECT 1 FROM event e
                          WHERE e.cause = c.id AND e.type = 'trading.trigger-condition-met'
                            AND e.payload ->> 'cross' = c.direction)
           OR NOT EXISTS (SELECT 1 FROM event e
                          WHERE e.cause = c.id AND e.type = 'trading.signal-generated'
                            AND e.payload ->> 'side' = iif(c.direction = 'above', 'buy', 'sell'))",
    ),
    check(
        Kind::Lost,
        "every signal has its answer",
        "
        SELECT market || ' ' || position AS text FROM event s
        WHERE type = 'trading.signal-generated'
          AND (SELECT count(*) FROM event e WHERE e.cause = s.id AND e.type IN
                 ('trading.order-approved', 'trading.order-cancelled')) <> 1",
    ),
    check(
        Kind::Lost,
        "every approval was placed",
        "
        SELECT market || ' ' || position AS text FROM event a
        WHERE type = 'trading.order-approved'
          AND NOT EXISTS (SELECT 1 FROM event e
                          WHERE e.cause = a.id AND e.type = 'trading.order-placed')",
    ),
    check(
        Kind::Lost,
        "every order fared as the exchange decides",
        "
        SELECT a.market || ' ' || a.position || ' ' || f.fate AS text
        FROM fate f JOIN event a USING (position)
        WHERE (SELECT count(*) FROM event e
               WHERE e.cause = a.id AND e.type = 'trading.order-executed') <> (f.fate = 'executed')
           OR (SELECT count(*) FROM event e
               WHERE e.cause = a.id AND e.type = 'trading.order-failed') <> (f.fate = 'failed')
           OR (SELECT count(*) FROM dead_letter d
               WHERE d.position = a.position AND d.subscription = 'broker') <> (f.fate = 'dead')",
    ),
    check(
        Kind::Lost,
        "every execution is booked, and told where it did something",
        "
        SELECT b.market || ' ' || b.position || ' ' || b.kind AS text
        FROM booking b LEFT JOIN fill f USING (position)
        WHERE f.kind IS NOT b.kind
           OR (SELECT count(*) FROM event e
               WHERE e.cause = b.id AND e.type = 'trading.position-opened') <> (b.kind = 'opened')
           OR (SELECT count(*) FROM event e
               WHERE e.cause = b.id AND e.type = 'trading.position-closed') <> (b.kind = 'closed')",
    ),
    check(
        Kind::Lost,
        "profit and positions are those of the executions",
        "
        WITH cash AS (
            SELECT *, iif(kind = 'opened', -amount, amount) - fee AS cash,
                   row_number() OVER (PARTITION BY market ORDER BY position DESC) AS backward
            FROM booking WHERE kind <> 'nothing'
        ), book AS (
            SELECT market,
                   sum(iif(kind = 'opened' AND backward = 1, 0, cash)) AS profit,
                   sum(iif(kind = 'opened' AND backward = 1, -cash, 0)) AS cost
            FROM cash GROUP BY market
        ), told AS (
            SELECT market, sum(payload ->> 'profit') AS profit
            FROM event WHERE type = 'trading.position-closed' GROUP BY market
        )
        SELECT market AS text
        FROM book LEFT JOIN desk.positions p USING (market) LEFT JOIN told t USING (market)
        WHERE p.profit IS NOT book.profit OR p.cost IS NOT book.cost
           OR ifnull(t.profit, 0) <> book.profit OR (p.quantity > 0) <> (book.cost > 0)
        UNION ALL
        SELECT market FROM desk.positions
        WHERE market NOT IN (SELECT market FROM book) AND (quantity <> 0 OR profit <> 0)",
    ),
    check(
        Kind::Order,
        "within a run, each subscription saw each aggregate in order",
        WITHIN_A_RUN,
    ),
    check(
        Kind::Order,
        "over all runs, nothing was first seen after something later",
        OVER_ALL_RUNS,
    ),
    check(
        Kind::Order,
        "everyone saw each event as one of its own aggregate",
        "
        SELECT s.subscription || ' ' || s.position AS text
        FROM sighting s LEFT JOIN event e USING (position)
        WHERE e.market IS NOT s.market OR e.aggregate_type IS NOT s.aggregate_type",
    ),
    check(
        Kind::Surplus,
        "nothing was published twice",
        "
        SELECT market || ' ' || min(position) || ' ' || type AS text FROM event
        WHERE cause <> '' GROUP BY cause, type HAVING count(*) > 1
        UNION ALL
        SELECT market || ' ' || time FROM candle GROUP BY market, time HAVING count(*) > 1",
    ),
    check(
        Kind::Surplus,
        "every event that follows has its cause",
        "
        WITH follows (type, cause_type) AS (VALUES
            ('trading.trigger-condition-met', 'market.candle-closed'),
            ('trading.signal-generated', 'market.candle-closed'),
            ('trading.order-approved', 'trading.signal-generated'),
            ('trading.order-cancelled', 'trading.signal-generated'),
            ('trading.order-placed', 'trading.order-approved'),
            ('trading.order-executed', 'trading.order-approved'),
            ('trading.order-failed', 'trading.order-approved'),
            ('trading.position-opened', 'trading.order-executed'),
            ('trading.position-closed', 'trading.order-executed'))
        SELECT e.market || ' ' || e.position || ' ' || e.type AS text
        FROM event e LEFT JOIN event c ON c.id = e.cause LEFT JOIN follows f ON f.type = e.type
        WHERE e.type <> 'market.candle-closed'
          AND (c.type IS NOT f.cause_type OR c.market <> e.market OR c.position >= e.position)
        UNION ALL
        SELECT e.market || ' ' || e.position || ' without a cross'
        FROM event e LEFT JOIN crossing x ON x.id = e.cause
        WHERE e.type = 'trading.signal-generated' AND x.id IS NULL",
    ),
    check(
        Kind::Surplus,
        "only orders that the exchange gives up are dead letters",
        "
        SELECT subscription || ' ' || position AS text FROM dead_letter
        WHERE subscription <> 'broker'
           OR position NOT IN (SELECT position FROM fate WHERE fate = 'dead')",
    ),
    check(
        Kind::Figures,
        "handled, skipped and dead are what was seen in this run",
        "
        SELECT subscription || ': counted ' || done || ', seen ' || seen AS text
        FROM (SELECT c.subscription, c.done, (SELECT count(DISTINCT position) FROM sighting s
                WHERE s.subscription = c.subscription
                  AND s.run = (SELECT run FROM this_run)) AS seen
              FROM counted c)
        WHERE done <> seen",
    ),
    check(
        Kind::Figures,
        "retries are the later attempts seen in this run",
        "
        SELECT subscription || ': counted ' || retries || ', seen ' || seen AS text
        FROM (SELECT c.subscription, c.retries, (SELECT count(*) FROM sighting s
                WHERE s.subscription = c.subscription AND s.attempt > 1
                  AND s.run = (SELECT run FROM this_run)) AS seen
              FROM counted c)
        WHERE retries <> seen",
    ),
    check(
        Kind::Figures,
        "nothing is left to do",
        "
        SELECT name || ' is at ' || through AS text FROM log.de_subscriptions
        WHERE through <> (SELECT max(position) FROM event) OR length(unfinished) > 0
        UNION ALL
        SELECT 'waiting ' || position FROM log.de_waiting
        UNION ALL
        SELECT 'blocked ' || from_position FROM log.de_blocked
        UNION ALL
        SELECT subscription || ' waits for ' || waiting FROM counted WHERE waiting <> 0",
    ),
];

/// Order within one run (D2), retries included.
///
/// For one subscription and one aggregate the positions of all attempts, in the order in which they
/// began, never go back; where a position stays, the attempt is a later one. So nothing overtakes,
/// a retry comes before whatever follows it, and a run repeats nothing of its own.
const WITHIN_A_RUN: &str = "
    SELECT subscription || ' ' || market || ': ' || position || ' after ' || earlier AS text
    FROM (SELECT subscription, market, position, attempt,
                 lag(position) OVER seen AS earlier, lag(attempt) OVER seen AS earlier_attempt
          FROM sighting WINDOW seen AS (
              PARTITION BY run, subscription, aggregate_type, market ORDER BY number))
    WHERE position < earlier OR (position = earlier AND attempt <= earlier_attempt)";

/// Order over all runs (D1, D2).
///
/// A later run may repeat what an earlier one has seen, from wherever progress was last saved, in
/// order (which is the check before). It may not come to something new and later while something
/// earlier was never seen: the first sightings of positions ascend over all runs.
const OVER_ALL_RUNS: &str = "
    SELECT subscription || ' ' || market || ': ' || position || ' after ' || earlier AS text
    FROM (SELECT subscription, market, position, lag(position) OVER (
              PARTITION BY subscription, aggregate_type, market ORDER BY first) AS earlier
          FROM (SELECT subscription, aggregate_type, market, position, min(number) AS first
                FROM sighting GROUP BY subscription, aggregate_type, market, position))
    WHERE position < earlier";
