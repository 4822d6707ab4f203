//! Where a delivery stands: what every table says of it, in one transaction.

use std::collections::{HashMap, hash_map::Entry};

use diesel::{QueryResult, SqliteConnection};

use crate::{positions, queries, rows::signed, verification::Standing};

/// How far a subscription has come, as far as it can be read.
pub(super) struct Progress {
    pub(super) through: i64,
    /// Ascending.
    pub(super) unfinished: Vec<i64>,
}

impl Progress {
    /// `None` where it cannot be read, or does not make sense.
    pub(super) fn read(through: i64, unfinished: &[u8]) -> Option<Self> {
        let unfinished = positions::decode(unfinished)?;
        let unfinished: Vec<i64> = unfinished.iter().map(|it| signed(it.get())).collect();
        let is_within = unfinished.last().is_none_or(|last| *last <= through);
        (through >= 0 && is_within).then_some(Self {
            through,
            unfinished,
        })
    }
}

/// A delivery: subscription, position, and the key of the event's aggregate.
#[derive(Clone, Copy)]
pub(super) struct Delivery {
    pub(super) subscription: i64,
    pub(super) position: i64,
    pub(super) aggregate: i64,
}

/// Answers within one transaction; each subscription's progress is read once.
#[derive(Default)]
pub(super) struct Standings {
    progress: HashMap<i64, Option<Progress>>,
}

impl Standings {
    /// `None` where there is no such subscription, or its progress cannot be read.
    pub(super) fn progress(
        &mut self,
        conn: &mut SqliteConnection,
        subscription: i64,
    ) -> QueryResult<Option<&Progress>> {
        let known = match self.progress.entry(subscription) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let row = queries::progress(conn, subscription)?;
                place.insert(row.and_then(|(through, bytes)| Progress::read(through, &bytes)))
            }
        };
        Ok(known.as_ref())
    }

    /// Whether a delivery stands there.
    pub(super) fn is(
        &mut self,
        conn: &mut SqliteConnection,
        delivery: Delivery,
        standing: Standing,
    ) -> QueryResult<bool> {
        let Delivery {
            subscription,
            position,
            aggregate,
        } = delivery;
        Ok(match standing {
            Standing::Unfinished => {
                let progress = self.progress(conn, subscription)?;
                let is_listed =
                    progress.is_some_and(|it| it.unfinished.binary_search(&position).is_ok());
                is_listed && !self.is(conn, delivery, Standing::Blocked)?
            }
            Standing::Waiting => queries::waits(conn, subscription, position)?.is_some(),
            Standing::Blocked => queries::blocked_from(conn, subscription, aggregate)?
                .is_some_and(|from| position >= from),
            Standing::Dead => queries::has_open_letter(conn, subscription, position)?,
        })
    }
}
