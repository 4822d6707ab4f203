//! What a file holds after a life: read from a copy, so that the next life finds what the last one left.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use domain_events::{
    AggregateRef, DeliveryStore, DomainEvent, EventEnvelope, EventStore, Position, Registration,
    StartFrom, SubscriptionState,
};
use event_store_diesel::{SqliteEventStore, SqliteOptions, Verification};

use crate::{
    events::{Counted, Echoed, NAMES, Who, wants, who},
    own::{self, Tables},
};

/// What a file holds.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// The events from position 1 on, be it that the first are no more in the file.
    pub(crate) log: Vec<Logged>,
    pub(crate) pruned_through: u64,
    /// What is known of each subscription.
    pub(crate) known: [Known; NAMES.len()],
    /// What is known of the projection, and what it and the application have written.
    pub(crate) folds: Known,
    /// Positions of the projection's dead letters.
    pub(crate) folds_given_up: Vec<u64>,
    pub(crate) tables: Tables,
    pub(crate) letters: Vec<Letter>,
    pub(crate) found: Verification,
}

/// An event of the log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) aggregate: AggregateRef,
    pub(crate) event_type: String,
    pub(crate) number: u64,
}

/// What is known of a subscription.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) through: u64,
    pub(crate) unfinished: BTreeSet<u64>,
    /// Attempts of what waits, and whether it is a replay.
    pub(crate) waiting: HashMap<u64, (u32, bool)>,
    /// From where, and behind which event.
    pub(crate) blocked: HashMap<AggregateRef, (u64, Option<u64>)>,
    pub(crate) is_paused: bool,
}

impl Known {
    /// Whether the delivery of an event is still to be made.
    fn is_open(&self, position: u64, aggregate: &AggregateRef) -> bool {
        let is_first = self.waiting.get(&position).is_some_and(|it| !it.1);
        let blocked = self.blocked.get(aggregate);
        let is_behind = blocked.is_some_and(|(from, _)| position >= *from);
        position > self.through || self.unfinished.contains(&position) || is_first || is_behind
    }

    /// Whether everything up to the end of the log is over.
    pub(crate) fn is_at_rest(&self, head: u64) -> bool {
        self.through == head
            && self.unfinished.is_empty()
            && self.waiting.is_empty()
            && self.blocked.is_empty()
            && !self.is_paused
    }
}

/// A dead letter.
pub(crate) struct Letter {
    pub(crate) delivery: (Who, u64),
    pub(crate) reason: String,
    pub(crate) settled_as: Option<String>,
}

impl Snapshot {
    /// What the file in the folder of a run holds, and of what was pruned, what it held `before`; nothing
    /// where there is none.
    pub(crate) async fn take(folder: &Path, before: &Self) -> Result<Self> {
        let copy = folder.join("copy");
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy)?;
        for name in ["events.db", "events.db-wal"] {
            if folder.join(name).exists() {
                fs::copy(folder.join(name), copy.join(name))?;
            }
        }
        let file = copy.join("events.db");
        if !file.exists() {
            return Ok(Self::default());
        }
        let store = SqliteEventStore::open(&file, SqliteOptions::default())?;
        let found = store.verify().await?;
        let kept = store.read_log(Position::ZERO, usize::MAX).await?;
        let pruned_through = store.pruned_through().await?.get();
        let registration = |name: &str| Registration {
            name: name.into(),
            // A name that is known goes on where it is; no life prunes before all are.
            start_from: StartFrom::After(Position::new(pruned_through)),
            projection: None,
            former_names: Vec::new(),
        };
        let names = NAMES.into_iter().chain([own::NAME]);
        let run = store.begin_run(names.map(registration).collect()).await?;
        let mut places = HashMap::new();
        for behind in run.subscriptions.iter().flat_map(|it| &it.blocked) {
            if let Some(id) = behind.parked_behind {
                let event = store.get(id).await?;
                let position = event.as_ref().and_then(EventEnvelope::position);
                places.extend(position.map(|position| (id, position.get())));
            }
        }
        store.close().await;
        let pruned = before.log.iter().cloned();
        let mut log: Vec<_> = pruned.take(usize::try_from(pruned_through)?).collect();
        for event in kept {
            log.push(logged(event)?);
        }
        let mut states = run.subscriptions.into_iter();
        let known = [(); NAMES.len()].map(|()| {
            let known = |state: SubscriptionState| known(state, |id| places.get(&id).copied());
            states.next().map(known).unwrap_or_default()
        });
        let mut given_up = Vec::new();
        let letters = letters(&file, &mut |position| given_up.push(position))?;
        let folds = states.next().map(|state| self::known(state, |_| None));
        Ok(Self {
            folds: folds.unwrap_or_default(),
            tables: Tables::read(&file)?,
            log,
            pruned_through,
            known,
            folds_given_up: given_up,
            letters,
            found,
        })
    }

    /// Whether a delivery is still to be made, or to be made again.
    pub(crate) fn is_open(&self, delivery: (Who, u64), aggregate: &AggregateRef) -> bool {
        let (who, position) = delivery;
        self.known[who].is_open(position, aggregate)
    }

    /// Where the application's tables do not agree with the log, and with what is known of the projection.
    pub(crate) fn faults_of_tables(&self) -> Vec<String> {
        let counted = (1..).zip(&self.log);
        let counted = counted.filter(|(_, event)| event.event_type == Counted::EVENT_TYPE);
        self.tables.faults(counted.map(|(position, event)| {
            let is_open = self.folds.is_open(position, &event.aggregate);
            // What is found running at too many ends that others have brought about is given up, too.
            let is_left = self.folds.waiting.contains_key(&position)
                || self.folds_given_up.contains(&position);
            (event.aggregate.id(), event.number, !is_open && !is_left)
        }))
    }

    /// The deliveries of a subscription, with the event of each.
    pub(crate) fn deliveries(&self, who: Who) -> impl Iterator<Item = (u64, &Logged)> {
        let events = (1..).zip(&self.log);
        events.filter(move |(_, event)| wants(who, &event.event_type))
    }
}

fn known(state: SubscriptionState, place: impl Fn(domain_events::EventId) -> Option<u64>) -> Known {
    let waiting = state.waiting.into_iter();
    let blocked = state.blocked.into_iter();
    Known {
        through: state.progress.through.get(),
        unfinished: state
            .progress
            .unfinished
            .iter()
            .map(|it| it.get())
            .collect(),
        waiting: waiting
            .map(|it| (it.position.get(), (it.attempts, it.is_replay)))
            .collect(),
        blocked: blocked
            .map(|it| {
                let behind = it.parked_behind.and_then(&place);
                (it.aggregate, (it.from.get(), behind))
            })
            .collect(),
        is_paused: state.paused.is_some(),
    }
}

fn logged(envelope: EventEnvelope) -> Result<Logged> {
    let envelope = Arc::new(envelope);
    let number = match envelope.typed::<Counted>() {
        Ok(event) => event.number,
        Err(_) => envelope.typed::<Echoed>()?.number,
    };
    Ok(Logged {
        aggregate: envelope.aggregate().clone(),
        event_type: envelope.event_type().to_owned(),
        number,
    })
}

/// The dead letters; of those of the projection only where they are, as long as they are.
fn letters(file: &Path, folds: &mut dyn FnMut(u64)) -> Result<Vec<Letter>> {
    let conn = rusqlite::Connection::open(file)?;
    let mut statement = conn.prepare(
        "SELECT name, position, reason, settled_as FROM de_dead_letters \
         JOIN de_subscriptions USING (subscription_id)",
    )?;
    let rows = statement.query_map([], |row| {
        let (name, position): (String, i64) = (row.get(0)?, row.get(1)?);
        Ok((name, position, row.get(2)?, row.get(3)?))
    })?;
    let mut letters = Vec::new();
    for row in rows {
        let (name, position, reason, settled_as): (String, i64, String, Option<String>) = row?;
        if name == own::NAME {
            ensure!(reason == "crashed", "the projection has failed for good");
            if settled_as.is_none() {
                folds(position.unsigned_abs());
            }
            continue;
        }
        let who = who(&name).context("a letter of somebody else")?;
        letters.push(Letter {
            delivery: (who, position.unsigned_abs()),
            reason,
            settled_as,
        });
    }
    Ok(letters)
}
