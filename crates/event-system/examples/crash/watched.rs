//! The store of a life: says in the journal what is committed, and ends the process before or after.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use domain_events::{
    Append, AppendDone, ChangesDone, DeliveryChange, DeliveryChanges, DeliveryStore, EventStore,
    Registration, RunState, StoreError, SubscriptionId,
};
use event_store_diesel::SqliteEventStore;
use event_testkit::interceptor::Interceptor;

use crate::{
    events::{self, Who},
    journal::{Fact, Journal},
    plan::{End, Life},
};

/// A store that is watched.
pub(crate) struct Watched {
    pub(crate) inner: SqliteEventStore,
    life: Life,
    journal: Arc<Journal>,
    /// How many moments have come that fit the end of the life.
    moments: AtomicU64,
    numbers: OnceLock<Vec<(SubscriptionId, Who)>>,
}

impl Watched {
    pub(crate) fn new(inner: SqliteEventStore, life: &Life, journal: &Arc<Journal>) -> Self {
        Self {
            inner,
            life: life.clone(),
            journal: Arc::clone(journal),
            moments: AtomicU64::new(0),
            numbers: OnceLock::new(),
        }
    }

    /// Whether the life ends at this moment.
    fn is_end(&self, end: End) -> bool {
        self.life.end == end && self.moments.fetch_add(1, Ordering::Relaxed) == self.life.nth
    }

    fn who(&self, id: SubscriptionId) -> Option<Who> {
        let numbers = self.numbers.get()?;
        numbers.iter().find(|it| it.0 == id).map(|it| it.1)
    }

    /// The starts that a save records.
    fn starting(&self, changes: &[DeliveryChange]) -> Vec<Fact> {
        let starting = |change: &DeliveryChange| match change {
            DeliveryChange::Started(id, at) => Some(Fact::Starting((self.who(*id)?, at.get()))),
            _ => None,
        };
        changes.iter().filter_map(starting).collect()
    }

    /// The attempts that a save counts.
    fn counted(&self, changes: &[DeliveryChange]) -> Vec<Fact> {
        let counted = |change: &DeliveryChange| match change {
            DeliveryChange::Waiting(id, it) | DeliveryChange::Replayed(id, it) => {
                let delivery = (self.who(*id)?, it.position.get());
                Some(Fact::Counted(delivery, it.attempts, it.is_replay))
            }
            _ => None,
        };
        changes.iter().filter_map(counted).collect()
    }
}

#[async_trait]
impl Interceptor for Watched {
    type Store = SqliteEventStore;

    fn store(&self) -> &SqliteEventStore {
        &self.inner
    }

    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        if self.is_end(End::BeforeAppend) {
            self.journal.die();
        }
        let ends = self.is_end(End::AfterAppend);
        let journal = Arc::clone(&self.journal);
        let told = move |appended| {
            if ends {
                journal.die();
            }
            done(appended);
        };
        self.inner.submit(batch, Box::new(told));
    }

    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        let names: Vec<_> = registrations
            .iter()
            .map(|it| events::who(&it.name))
            .collect();
        let state = self.inner.begin_run(registrations).await?;
        let ids = state.subscriptions.iter().map(|it| it.id);
        let numbers = ids.zip(names).filter_map(|(id, who)| Some((id, who?)));
        let _ = self.numbers.set(numbers.collect());
        Ok(state)
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        let fits = !changes.is_empty() && self.life.saves.count(&changes);
        if fits && self.is_end(End::BeforeSave) {
            self.journal.die();
        }
        let starting = self.starting(&changes);
        starting.iter().for_each(|fact| self.journal.note(fact));
        let ends = fits && self.is_end(End::AfterSave);
        let (journal, counted) = (Arc::clone(&self.journal), self.counted(&changes));
        // What only waits for its turn saves nothing.
        let is_save = !changes.is_empty();
        let told = move |saved: Result<(), StoreError>| {
            if ends {
                journal.die();
            }
            if saved.is_ok() && is_save {
                counted.iter().for_each(|fact| journal.note(fact));
                journal.note(&Fact::Saved);
            }
            done(saved);
        };
        self.inner.submit_changes(changes, Box::new(told));
    }
}
