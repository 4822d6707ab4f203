//! The subscriptions of a life: they succeed, fail and end the process, and say so in the journal.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use domain_events::{
    Batch, BatchVerdicts, Event, EventEnvelope, FailurePolicy, HandlerContext, HandlerError,
    NewEvent, Ordering, Position, Priority, RetryPolicy, StartFrom, Subscription,
};

use crate::{
    events::{
        ALL, ATTEMPTS, BATCH, Counted, DEADLY, Echoed, NAMES, NONE, PARK, PAUSE, SKIP, TOTAL, Who,
        is_echoed,
    },
    journal::{Delivery, Fact, How, Journal},
    plan::{End, Life},
};

/// What all handlers share.
pub(crate) struct Handlers {
    life: Life,
    journal: Arc<Journal>,
    random: Mutex<fastrand::Rng>,
    /// How many moments have come that fit the end of the life.
    moments: AtomicU64,
}

impl Handlers {
    pub(crate) fn new(life: &Life, journal: &Arc<Journal>) -> Arc<Self> {
        Arc::new(Self {
            life: life.clone(),
            journal: Arc::clone(journal),
            random: Mutex::new(fastrand::Rng::with_seed(life.seed ^ 1)),
            moments: AtomicU64::new(0),
        })
    }

    /// All subscriptions.
    pub(crate) fn subscriptions(self: &Arc<Self>) -> Vec<Subscription> {
        let counted = |who| self.counted(who);
        let policy = |subscription: Subscription, policy| subscription.failure_policy(policy);
        let all = vec![
            counted(SKIP).priority(Priority::HIGH),
            policy(counted(PARK), FailurePolicy::ParkAggregate),
            self.all().isolated(2).capacity(8),
            policy(counted(PAUSE), FailurePolicy::PauseSubscription),
            self.batched(),
            counted(TOTAL)
                .ordering(Ordering::Total)
                .isolated(1)
                .capacity(8),
            counted(NONE).ordering(Ordering::None).isolated(2),
        ];
        let retry = || {
            RetryPolicy::exponential()
                .base(Duration::from_millis(1))
                .max_attempts(ATTEMPTS)
        };
        let complete = |it: Subscription| it.start_from(StartFrom::Beginning).retry(retry());
        all.into_iter().map(complete).collect()
    }

    fn counted(self: &Arc<Self>, who: Who) -> Subscription {
        let handlers = Arc::clone(self);
        Subscription::from_fn(NAMES[who], move |event: Event<Counted>, cx| {
            let handlers = Arc::clone(&handlers);
            async move { handlers.handle(who, Some(event.number), cx).await }
        })
    }

    fn all(self: &Arc<Self>) -> Subscription {
        let handlers = Arc::clone(self);
        Subscription::to_all(NAMES[ALL], move |envelope: Arc<EventEnvelope>, cx| {
            let handlers = Arc::clone(&handlers);
            let number = envelope.typed::<Counted>().ok().map(|event| event.number);
            async move { handlers.handle(ALL, number, cx).await }
        })
    }

    fn batched(self: &Arc<Self>) -> Subscription {
        let handlers = Arc::clone(self);
        Subscription::from_batch_fn(NAMES[BATCH], 8, move |batch: Batch<Counted>| {
            let handlers = Arc::clone(&handlers);
            async move { Ok(handlers.handle_batch(&batch).await) }
        })
    }

    async fn handle(
        &self,
        who: Who,
        number: Option<u64>,
        cx: HandlerContext,
    ) -> Result<(), HandlerError> {
        let attempt = self.begin(who, &cx);
        let is_deadly = self.life.deadly == Some(who) && number == Some(DEADLY);
        if is_deadly && self.life.end == End::Aborted && !attempt.is_replay {
            self.journal.note(&Fact::Met);
            std::process::abort();
        }
        if self.is_end(End::InHandler) {
            self.journal.die();
        }
        self.work().await;
        let mut how = self.how(attempt.is_replay);
        if let Some(number) = number.filter(|it| who == SKIP && how == How::Ok && is_echoed(*it)) {
            let counter = (number % 3).to_string();
            let echo = NewEvent::new(Echoed { counter, number });
            if cx.publish(echo).await.is_err() {
                how = How::Failed;
            }
        }
        self.end(&attempt, how)
    }

    /// Handles one after the other; what fails, fails those behind it of its aggregate.
    async fn handle_batch(&self, batch: &Batch<Counted>) -> BatchVerdicts {
        let mut verdicts = BatchVerdicts::all_handled();
        let mut failed = HashSet::new();
        for (place, (event, cx)) in batch.iter().enumerate() {
            if failed.contains(&event.counter) {
                continue;
            }
            let attempt = self.begin(BATCH, cx);
            if self.is_end(End::InHandler) {
                self.journal.die();
            }
            self.work().await;
            if let Err(error) = self.end(&attempt, self.how(attempt.is_replay)) {
                verdicts.fail(place, error);
                failed.insert(event.counter.clone());
            }
        }
        verdicts
    }

    fn begin(&self, who: Who, cx: &HandlerContext) -> Attempt {
        let info = cx.info();
        let position = cx.envelope().position().unwrap_or(Position::ZERO);
        let attempt = Attempt {
            delivery: (who, position.get()),
            number: info.attempt,
            is_replay: info.is_replay,
        };
        let Attempt {
            delivery,
            number,
            is_replay,
        } = attempt;
        let repeat = info.may_be_repeat;
        self.journal
            .note(&Fact::Began(delivery, number, repeat, is_replay));
        attempt
    }

    fn end(&self, attempt: &Attempt, how: How) -> Result<(), HandlerError> {
        let Attempt {
            delivery,
            number,
            is_replay,
        } = *attempt;
        self.journal
            .note(&Fact::Ended(delivery, number, how, is_replay));
        if self.is_end(End::AfterHandler) {
            self.journal.die();
        }
        match how {
            How::Ok => Ok(()),
            How::Failed => Err(HandlerError::transient("not today")),
            How::Permanent => Err(HandlerError::permanent("never")),
        }
    }

    /// Whether the life ends at this moment.
    fn is_end(&self, end: End) -> bool {
        self.life.end == end && self.moments.fetch_add(1, Relaxed) == self.life.nth
    }

    /// Takes some time, or none.
    async fn work(&self) {
        match self.draw(4) {
            0 => tokio::task::yield_now().await,
            1 => {
                let micros = u64::from(self.draw(1_000));
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
            _ => {}
        }
    }

    fn how(&self, is_replay: bool) -> How {
        if self.life.peaceful || self.life.end == End::Settled {
            return How::Ok;
        }
        let (failed, permanent) = if is_replay { (15, 15) } else { (12, 5) };
        match self.draw(100) {
            it if it < failed => How::Failed,
            it if it < failed + permanent => How::Permanent,
            _ => How::Ok,
        }
    }

    fn draw(&self, below: u32) -> u32 {
        let random = self.random.lock();
        random.unwrap_or_else(PoisonError::into_inner).u32(..below)
    }
}

struct Attempt {
    delivery: Delivery,
    number: u32,
    is_replay: bool,
}
