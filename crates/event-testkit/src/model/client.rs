//! Clients: each makes its steps one after the other, and writes them down.

use std::{pin::pin, sync::Arc, task::Poll};

use domain_events::{DeadLetterQuery, EventBus, NewEvent, PublishError, Receipt};
use tokio::{task::yield_now, time::sleep};

use super::{
    events::new_event,
    handler::{name, subscription},
    play::Stage,
    program::{How, Raised, Step},
    trace::{Answer, Observed},
};

/// Plays one client.
pub(super) async fn run(stage: Arc<Stage>, bus: Arc<dyn EventBus>, steps: Vec<Step>) {
    let mut last = None;
    for step in steps {
        match step {
            Step::Publish(how, events) => {
                if let Some(receipt) = publish(&stage, &*bus, how, &events).await {
                    last = Some(receipt);
                }
            }
            Step::Yield(times) => {
                for _ in 0..times {
                    yield_now().await;
                }
            }
            Step::Pass(units) => sleep(stage.pace.units(units)).await,
            Step::Subscribe(one) => {
                if stage.program.subscribers[one].is_late {
                    subscribe(&stage, &*bus, one).await;
                }
            }
            Step::Unsubscribe(one) => {
                stage.note(Observed::Unsubscribing(one));
                let there = bus.unsubscribe(&name(one)).await;
                stage.note(Observed::Unsubscribed(one, there));
            }
            Step::Pause(one) => {
                let call = stage.call();
                stage.note(Observed::Pausing(call, one));
                let there = bus.pause(&name(one)).await;
                stage.note(Observed::Paused(call, one, there));
            }
            Step::Resume(one) => resume(&stage, &*bus, one).await,
            Step::Replay(one) => replay(&stage, &*bus, one).await,
            Step::Discard(one) => {
                discard(&stage, &*bus, one).await;
            }
            Step::WaitIdle => wait_idle(&stage, &*bus).await,
            Step::AskReceipt => {
                if let Some((event, receipt)) = &last {
                    ask(&stage, *event, receipt).await;
                }
            }
        }
    }
}

/// Subscribes, where nobody has before.
pub(super) async fn subscribe(stage: &Arc<Stage>, bus: &dyn EventBus, one: usize) {
    if stage.is_first_subscribe(one) {
        stage.note(Observed::Subscribing(one));
        let made = bus.subscribe(subscription(stage, one)).await;
        stage.note(Observed::Subscribed(one, made.is_ok()));
    }
}

pub(super) async fn resume(stage: &Stage, bus: &dyn EventBus, one: usize) {
    let call = stage.call();
    stage.note(Observed::Resuming(call, one));
    let there = bus.resume(&name(one)).await;
    stage.note(Observed::Resumed(call, one, there));
}

async fn replay(stage: &Stage, bus: &dyn EventBus, one: usize) {
    if let Some((event, id)) = oldest_letter(stage, bus, one).await {
        let call = stage.call();
        stage.note(Observed::Replaying(call, one, event));
        let done = bus.replay(&name(one), id).await;
        stage.note(Observed::Replayed(call, done.is_ok()));
    }
}

/// Discards the oldest dead letter of a subscription; returns whether there was one.
pub(super) async fn discard(stage: &Stage, bus: &dyn EventBus, one: usize) -> bool {
    let Some((event, id)) = oldest_letter(stage, bus, one).await else {
        return false;
    };
    let call = stage.call();
    stage.note(Observed::Discarding(call, one, event));
    let done = bus.discard(&name(one), id, "as the program says").await;
    stage.note(Observed::Discarded(call, done.is_ok()));
    true
}

async fn oldest_letter(
    stage: &Stage,
    bus: &dyn EventBus,
    one: usize,
) -> Option<(usize, domain_events::EventId)> {
    let letters = bus
        .dead_letters(&DeadLetterQuery::of(name(one)), usize::MAX)
        .await
        .ok()?;
    let known = letters
        .iter()
        .map(|letter| stage.number_of(letter.event_id()).unwrap_or(usize::MAX));
    let numbers: Vec<usize> = known.collect();
    let oldest = numbers.first().copied();
    stage.note(Observed::Letters(one, numbers));
    oldest.zip(letters.first().map(|letter| letter.event_id()))
}

pub(super) async fn wait_idle(stage: &Stage, bus: &dyn EventBus) {
    let call = stage.call();
    stage.note(Observed::WaitingIdle(call));
    if bus.wait_idle().await.is_ok() {
        stage.note(Observed::Idle(call));
    }
}

pub(super) async fn ask(stage: &Stage, event: usize, receipt: &Receipt) {
    let call = stage.call();
    stage.note(Observed::Asking(call, event));
    if let Ok(handled) = receipt.handled().await {
        let number = |name: &str| name[1..].parse().unwrap_or(usize::MAX);
        let outcomes = handled.outcomes.iter();
        let outcomes = outcomes.map(|(name, outcome)| (number(name), *outcome));
        stage.note(Observed::Outcomes(call, outcomes.collect()));
    }
}

/// Publishes; returns the receipt of the last event.
async fn publish(
    stage: &Arc<Stage>,
    bus: &dyn EventBus,
    how: How,
    events: &[Raised],
) -> Option<(usize, Arc<Receipt>)> {
    let (call, mut new) = Call::begin(stage, how, events, None)?;
    let one = |new: &mut Vec<NewEvent>| new.pop();
    let result = match how {
        How::Try => bus.try_publish(one(&mut new)?).await.map(|it| vec![it]),
        How::Timeout(units) => {
            let publish = bus.publish_timeout(one(&mut new)?, stage.pace.units(units));
            publish.await.map(|it| vec![it])
        }
        How::Wait if new.len() == 1 => bus.publish(one(&mut new)?).await.map(|it| vec![it]),
        How::Wait => bus.publish_all(new).await,
        How::DropAfter(polls) if new.len() == 1 => {
            let publish = bus.publish(one(&mut new)?);
            drop_after(publish, polls).await?.map(|it| vec![it])
        }
        How::DropAfter(polls) => drop_after(bus.publish_all(new), polls).await?,
    };
    call.answered(result)
}

/// Polls so many times, with others running in between, and drops the future.
async fn drop_after<F: Future>(future: F, polls: u8) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// A publish until its answer is written down; dropped, it is written down as that.
pub(super) struct Call {
    stage: Arc<Stage>,
    number: usize,
    first: usize,
    is_answered: bool,
}

impl Call {
    /// Begins to publish events, where the program may publish so many more.
    pub(super) fn begin(
        stage: &Arc<Stage>,
        how: How,
        events: &[Raised],
        inside: Option<(usize, usize)>,
    ) -> Option<(Self, Vec<NewEvent>)> {
        let (number, first) = stage.begin_publish(how, events, inside)?;
        let numbered = events.iter().zip(first..);
        let new = numbered.map(|(raised, number)| new_event(*raised, number, inside.is_some()));
        let call = Self {
            stage: Arc::clone(stage),
            number,
            first,
            is_answered: false,
        };
        Some((call, new.collect()))
    }

    /// Writes the answer down; returns the receipt of the last event.
    pub(super) fn answered(
        mut self,
        result: Result<Vec<Receipt>, PublishError>,
    ) -> Option<(usize, Arc<Receipt>)> {
        self.is_answered = true;
        let answer = match &result {
            Ok(receipts) => Answer::Accepted(receipts.iter().map(Receipt::event_id).collect()),
            Err(PublishError::Full { events, .. }) => Answer::Full(events.len()),
            Err(PublishError::BatchTooLarge { .. }) => Answer::TooLarge,
            Err(PublishError::Stopped) => Answer::Stopped,
            Err(other) => Answer::Failed(other.to_string()),
        };
        self.stage.note(Observed::Published(self.number, answer));
        let receipts = result.unwrap_or_default().into_iter();
        let numbered = (self.first..).zip(receipts.map(Arc::new));
        numbered.inspect(|receipt| self.stage.keep(receipt)).last()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_answered {
            let dropped = Observed::Published(self.number, Answer::Dropped);
            self.stage.note(dropped);
        }
    }
}
