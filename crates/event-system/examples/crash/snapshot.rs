//! What a file holds after a life: read from a copy, so that the next life finds what the last one left.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use domain_events::{
    AggregateRef, DeliveryStore, EventEnvelope, EventStore, Position, Registration, StartFrom,
    SubscriptionState,
};
use event_store_diesel::{SqliteEventStore, SqliteOptions, Verification};

use crate::events::{Counted, Echoed, NAMES, Who, wants, who};

/// What a file holds.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// The events from position 1 on, be it that the first are no more in the file.
    pub(crate) log: Vec<Logged>,
    pub(crate) pruned_through: u64,
    /// What is known of each subscription.
    pub(crate) known: [Known; NAMES.len()],
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
        let run = store.begin_run(NAMES.map(registration).into()).await?;
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
        Ok(Self {
            log,
            pruned_through,
            known,
            letters: letters(&file)?,
            found,
        })
    }

    /// Whether a delivery is still to be made, or to be made again.
    pub(crate) fn is_open(&self, delivery: (Who, u64), aggregate: &AggregateRef) -> bool {
        let (who, position) = delivery;
        let known = &self.known[who];
        let is_first = known.waiting.get(&position).is_some_and(|it| !it.1);
        let blocked = known.blocked.get(aggregate);
        let is_behind = blocked.is_some_and(|(from, _)| position >= *from);
        position > known.through || known.unfinished.contains(&position) || is_first || is_behind
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

fn letters(file: &Path) -> Result<Vec<Letter>> {
    let conn = rusqlite::Connection::open(file)?;
    let mut statement = conn.prepare(
        "SELECT name, position, reason, settled_as FROM de_dead_letters \
         JOIN de_subscriptions USING (subscription_id)",
    )?;
    let rows = statement.query_map([], |row| {
        let (name, position): (String, i64) = (row.get(0)?, row.get(1)?);
        Ok((name, position, row.get(2)?, row.get(3)?))
    })?;
    rows.map(|row| {
        let (name, position, reason, settled_as) = row?;
        let who = who(&name).context("a letter of somebody else")?;
        Ok(Letter {
            delivery: (who, position.unsigned_abs()),
            reason,
            settled_as,
        })
    })
    .collect()
}
