//! Reading a log: which events, as a stream of short pages, and what they add up to.

use std::{
    collections::BTreeMap,
    fmt,
    future::{poll_fn, ready},
    ops::RangeInclusive,
    sync::Arc,
    task::Poll,
    vec,
};

use crate::{
    AggregateRef, BoxFuture, CorrelationId, DecodeError, EventEnvelope, EventStore, Position,
    Recorded, StoreError, Timestamp, Version,
};

/// Which events of a log are meant; they come in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventQuery {
    /// All that are kept (R8). An event that was pruned, and is kept for a dead letter, is none of
    /// any query but [`Unfinished`](Self::Unfinished); it is found by its id.
    Log,
    /// Those of one aggregate with these versions. Where its beginning was pruned (R8), the first that is
    /// read has not the first version that was asked for.
    History(AggregateRef, RangeInclusive<Version>),
    /// Those of the type with this name.
    OfType(Arc<str>),
    /// Those of one chain.
    Correlated(CorrelationId),
    /// Those recorded in this time, both ends included.
    Recorded(RangeInclusive<Timestamp>),
    /// Those that some subscription, as far as the store knows, has not finished.
    Unfinished,
}

impl EventQuery {
    /// The whole history of an aggregate.
    pub fn history(aggregate: AggregateRef) -> Self {
        Self::History(aggregate, Version::FIRST..=Version::new(u64::MAX))
    }

    /// Leaves out the first `count` events, where that can be said.
    ///
    /// Versions have no gaps, so a history need not be searched from its beginning again.
    fn leave_out(&mut self, count: usize) {
        if let Self::History(_, versions) = self {
            let first = versions.start().get().saturating_add(count as u64);
            *versions = Version::new(first)..=*versions.end();
        }
    }
}

/// Events of a log, read in pages: each is a short transaction of its own, so that a slow reader
/// holds nobody up, and what is appended meanwhile is read too. While one page is used, the next is
/// on its way.
pub struct EventStream<'a, S: ?Sized> {
    store: &'a S,
    query: EventQuery,
    after: Position,
    page_size: usize,
    page: vec::IntoIter<EventEnvelope>,
    next_page: Option<NextPage<'a>>,
    has_ended: bool,
}

type NextPage<'a> = BoxFuture<'a, Result<Vec<EventEnvelope>, StoreError>>;

impl<'a, S: EventStore + ?Sized> EventStream<'a, S> {
    /// How many events a page has unless said otherwise.
    const PAGE_SIZE: usize = 1_024;

    /// The events of `store` that `query` means.
    pub fn new(store: &'a S, query: EventQuery) -> Self {
        Self {
            store,
            query,
            after: Position::ZERO,
            page_size: Self::PAGE_SIZE,
            page: Vec::new().into_iter(),
            next_page: None,
            has_ended: false,
        }
    }

    /// Leaves out what is at or before this position.
    #[must_use]
    pub fn after(self, after: Position) -> Self {
        Self { after, ..self }
    }

    /// Reads so many events at a time, at least one.
    #[must_use]
    pub fn page_size(self, events: usize) -> Self {
        let page_size = events.max(1);
        Self { page_size, ..self }
    }

    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// When the store cannot be read; the next call tries again.
    ///
    /// # Cancellation
    /// A dropped future has taken no event.
    pub async fn next(&mut self) -> Result<Option<Arc<EventEnvelope>>, StoreError> {
        loop {
            if let Some(event) = self.page.next() {
                return Ok(Some(Arc::new(event)));
            }
            if self.has_ended {
                return Ok(None);
            }
            self.turn_page().await?;
        }
    }

    /// Folds the events into a state, one after the other.
    ///
    /// # Errors
    /// The first error of `apply` or of the store; [`ReadError`] takes in both.
    pub async fn fold<T, E: From<StoreError>>(
        mut self,
        mut state: T,
        mut apply: impl FnMut(T, Arc<EventEnvelope>) -> Result<T, E>,
    ) -> Result<T, E> {
        while let Some(event) = self.next().await? {
            state = apply(state, event)?;
        }
        Ok(state)
    }

    async fn turn_page(&mut self) -> Result<(), StoreError> {
        let is_fresh = self.next_page.is_none();
        let reading = self.next_page.take().unwrap_or_else(|| self.read());
        // Kept while it is awaited, so that a dropped future loses nothing.
        let page = self.next_page.insert(reading).await;
        self.next_page = None;
        let page = page?;
        let is_full = page.len() == self.page_size;
        // What was read ahead may be short only because it was read early.
        self.has_ended = is_fresh && !is_full;
        if let Some(last) = page.last().and_then(EventEnvelope::position) {
            self.after = last;
            self.query.leave_out(page.len());
        }
        self.page = page.into_iter();
        if is_full {
            self.read_ahead().await;
        }
        Ok(())
    }

    fn read(&self) -> NextPage<'a> {
        let (store, query) = (self.store, self.query.clone());
        let (after, page_size) = (self.after, self.page_size);
        Box::pin(async move { store.read(&query, after, page_size).await })
    }

    /// Asks for the next page, and waits for nothing.
    async fn read_ahead(&mut self) {
        let mut reading = self.read();
        let asked = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
        self.next_page = Some(match asked {
            Poll::Ready(page) => Box::pin(ready(page)),
            Poll::Pending => reading,
        });
    }
}

impl<S: ?Sized> fmt::Debug for EventStream<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("query", &self.query)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// An event that could not be read from the log, or not as what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event could not be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// How many events a query means, and where the first and the last of them are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSummary {
    /// How many there are.
    pub events: u64,
    /// Place and time of the first; `None` where there is none, or where it is damaged.
    pub first: Option<Recorded>,
    /// Place and time of the last, likewise.
    pub last: Option<Recorded>,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatistics {
    /// All events of the log, with the earliest and the latest.
    pub log: EventSummary,
    /// The log was pruned up to here: it is kept after this position (R8).
    pub pruned_through: Position,
    /// How many events no subscription, as far as the store knows, has yet to finish.
    ///
    /// Where the store has no subscription these are all: nobody waits for them.
    pub finished: u64,
    /// How many events there are of each type.
    pub by_type: BTreeMap<String, u64>,
    /// How many aggregates have a history, or had one that was pruned.
    pub aggregates: u64,
    /// How much room it takes; `None` where it does not tell.
    pub size: Option<StoreSize>,
}

/// How much room a store takes, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreSize {
    /// The database, without its write-ahead log. It does not shrink: what was pruned is used again.
    pub database: u64,
    /// What of the database is free, to be used again.
    pub free: u64,
    /// The write-ahead log, which is used again from its beginning after each checkpoint.
    pub write_ahead_log: u64,
    /// Each table with its indexes; empty where the database does not tell.
    pub tables: BTreeMap<String, u64>,
}

impl StoreStatistics {
    /// How many events some subscription has not finished.
    pub fn unfinished(&self) -> u64 {
        self.log.events.saturating_sub(self.finished)
    }
}
