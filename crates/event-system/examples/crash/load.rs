//! What is asked of a system while it lives: events are published, and a person intervenes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use domain_events::{
    DeadLetter, DeadLetterQuery, EventBus, LetterError, NewEvent, Position, PublishError, Receipt,
    Retention,
};
use event_bus_core::InMemoryEventBus;
use tokio::time::sleep;

use crate::{
    events::{Counted, NAMES, PAUSE, who},
    journal::{Fact, Journal},
    own::{self, Application},
    plan::{End, Life},
};

/// How many events a publisher publishes in a life, at the most.
const MOST: u64 = 250;

/// What is asked of a bus.
pub(crate) struct Load {
    pub(crate) bus: Arc<InMemoryEventBus>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) life: Life,
    pub(crate) is_over: AtomicBool,
    /// What is in the log at the beginning of the life, the judge has seen, and may be pruned.
    seen: Position,
    published: AtomicU64,
    /// How many events were to be committed by the application itself.
    own_published: AtomicU64,
    own: Mutex<Application>,
}

impl Load {
    pub(crate) fn new(
        bus: &Arc<InMemoryEventBus>,
        journal: &Arc<Journal>,
        life: &Life,
        seen: Position,
        own: Application,
    ) -> Self {
        Self {
            seen,
            own: Mutex::new(own),
            own_published: AtomicU64::new(0),
            bus: Arc::clone(bus),
            journal: Arc::clone(journal),
            life: life.clone(),
            is_over: AtomicBool::new(false),
            published: AtomicU64::new(0),
        }
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// An event with the next number, which no other life gives.
    fn event(&self, random: &mut fastrand::Rng) -> (u64, NewEvent) {
        let number = self.published.fetch_add(1, Ordering::Relaxed) + 1_000_000 * self.life.number;
        let counter = random.u8(..5).to_string();
        (number, NewEvent::new(Counted { counter, number }))
    }

    /// Publishes one event after the other, in every way there is.
    pub(crate) async fn publish(&self, seed: u64) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(self.life.seed ^ seed);
        while self.goes_on() && self.published.load(Ordering::Relaxed) < 2 * MOST {
            let ended = match random.u8(..12) {
                0 => self.publish_several(&mut random).await,
                1 => {
                    let (number, event) = self.event(&mut random);
                    self.note(
                        [number],
                        self.bus.try_publish(event).await.map(|it| vec![it]),
                    )
                }
                2 => {
                    let (number, event) = self.event(&mut random);
                    let patience = Duration::from_micros(random.u64(..500));
                    let published = self.bus.publish_timeout(event, patience).await;
                    self.note([number], published.map(|it| vec![it]))
                }
                3 | 4 => {
                    self.write(&mut random)?;
                    Ok(())
                }
                _ => {
                    let (number, event) = self.event(&mut random);
                    self.note([number], self.bus.publish(event).await.map(|it| vec![it]))
                }
            };
            match ended {
                Ok(()) | Err(PublishError::Full { .. }) => {}
                Err(PublishError::Stopped) => break,
                Err(error) => bail!("{error:?}"),
            }
            if random.u8(..4) == 0 {
                sleep(Duration::from_micros(random.u64(..3_000))).await;
            }
        }
        Ok(())
    }

    /// Writes an event together with a row of the application's, and tells the bus, or does not.
    fn write(&self, random: &mut fastrand::Rng) -> Result<()> {
        let written = self.own_published.fetch_add(1, Ordering::Relaxed);
        let number = written + own::OUTBOX + 1_000_000 * self.life.number;
        let counter = random.u8(..5).to_string();
        let event = NewEvent::new(Counted { counter, number });
        let undo = random.u8(..5) == 0;
        let written = tokio::task::block_in_place(|| {
            let own = self.own.lock();
            own.unwrap_or_else(PoisonError::into_inner)
                .write(number, event, undo)
        })?;
        let Some(position) = written else {
            return Ok(());
        };
        self.journal.note(&Fact::Accepted(number, position.get()));
        if self.life.end == End::BeforeWake && number % own::OUTBOX == self.life.nth {
            self.journal.die();
        }
        if random.bool() {
            self.bus.wake();
        }
        Ok(())
    }

    async fn publish_several(&self, random: &mut fastrand::Rng) -> Result<(), PublishError> {
        let events = (0..random.usize(2..5)).map(|_| self.event(random));
        let (numbers, events): (Vec<_>, Vec<_>) = events.collect();
        self.note(numbers, self.bus.publish_all(events).await)
    }

    /// Writes down what was accepted.
    fn note(
        &self,
        numbers: impl IntoIterator<Item = u64>,
        published: Result<Vec<Receipt>, PublishError>,
    ) -> Result<(), PublishError> {
        for (number, receipt) in numbers.into_iter().zip(published?) {
            if let Some(recorded) = receipt.recorded() {
                self.journal
                    .note(&Fact::Accepted(number, recorded.position.get()));
            }
        }
        Ok(())
    }

    /// Replays and discards dead letters, pauses and resumes, and prunes the log.
    pub(crate) async fn intervene(&self) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(self.life.seed ^ 99);
        while self.goes_on() {
            sleep(Duration::from_micros(random.u64(..8_000))).await;
            match random.u8(..10) {
                0 => {
                    let someone = random.usize(..NAMES.len());
                    if self.bus.pause(NAMES[someone]).await {
                        self.journal.note(&Fact::Paused(someone));
                    }
                    sleep(Duration::from_micros(random.u64(..4_000))).await;
                    self.resume(someone).await;
                }
                1..4 => self.resume(PAUSE).await,
                4 => {
                    let position = Position::new(random.u64(..=self.seen.get()));
                    self.bus.prune(Retention::After(position)).await?;
                }
                _ => {
                    let query = DeadLetterQuery::all();
                    let letters = self.bus.dead_letters(&query, 50).await?;
                    if let Some(letter) = random.choice(&letters) {
                        self.settle(letter, random.u8(..3) == 0).await?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn resume(&self, someone: usize) {
        self.journal.note(&Fact::Resuming(someone));
        if self.bus.resume(NAMES[someone]).await {
            self.journal.note(&Fact::Resumed(someone));
        }
    }

    /// Discards a dead letter, or has it delivered again.
    pub(crate) async fn settle(&self, letter: &DeadLetter, discard: bool) -> Result<()> {
        let (name, event) = (&*letter.subscription, letter.event_id());
        let delivery = who(name).zip(letter.position());
        let settled = match delivery.filter(|_| discard) {
            Some((someone, position)) => {
                self.journal
                    .note(&Fact::Discarding((someone, position.get())));
                self.bus.discard(name, event, "of no use").await
            }
            None => self.bus.replay(name, event).await,
        };
        match settled {
            Ok(()) | Err(LetterError::NoSuchLetter { .. } | LetterError::NotRunning) => Ok(()),
            Err(error) => bail!("{error:?}"),
        }
    }
}
