//! The dead letters of a durable bus: the store keeps them, and what is done with one is a commit (F6).

use std::sync::Arc;

use domain_events::{
    DeadLetter, DeadLetterGroup, DeadLetterQuery, DeliveryChange, EventEnvelope, LetterError,
    StoreError, StoreErrorKind, Timestamp, WaitingDelivery,
};
use tokio::sync::MutexGuard;

use crate::{
    after::After,
    engine::{Engine, Stores},
    inside,
    lifecycle::Phase,
    progress,
    settling::Settled,
    state::State,
    subscribed::Subscribed,
    timers::Due,
};

/// How many dead letters are settled in one commit.
const PAGE: usize = 500;

/// Up to `limit` of those that `query` means; those counted that are not committed yet.
pub(crate) async fn list(
    engine: &Engine,
    stores: &Stores,
    query: &DeadLetterQuery,
    limit: usize,
) -> Result<Vec<DeadLetter>, StoreError> {
    progress::all_committed(engine).await;
    stores.deliveries.dead_letters(query, limit).await
}

/// The same in groups.
pub(crate) async fn groups(
    engine: &Engine,
    stores: &Stores,
    query: &DeadLetterQuery,
) -> Result<Vec<DeadLetterGroup>, StoreError> {
    progress::all_committed(engine).await;
    stores.deliveries.dead_letter_groups(query).await
}

/// Waits until nobody else settles letters; whoever does may wait for the transaction that the call comes
/// from.
async fn alone(engine: &Engine) -> Result<MutexGuard<'_, ()>, LetterError> {
    if inside::is_in_transaction(engine.id) {
        let what = "no letter is settled inside a transactional handler";
        return Err(StoreError::new(StoreErrorKind::InsideTransaction, what).into());
    }
    Ok(engine.letters.lock().await)
}

/// Has all dead letters delivered again that `query` means, oldest first, or none. Returns how many.
pub(crate) async fn replay_all(
    engine: &Engine,
    stores: &Stores,
    query: &DeadLetterQuery,
) -> Result<usize, LetterError> {
    let _alone = alone(engine).await?;
    let query = until_now(query);
    for group in groups(engine, stores, &query).await? {
        engine.look(|state| state.who_replays(&group.subscription).map(drop))?;
    }
    let told = Settled::say_replayed;
    settle_all(engine, stores, &query, State::replay_from_log, told).await
}

/// Gives all dead letters up for good that `query` means. Returns how many.
pub(crate) async fn discard_all(
    engine: &Engine,
    stores: &Stores,
    query: &DeadLetterQuery,
    reason: &str,
) -> Result<usize, LetterError> {
    let _alone = alone(engine).await?;
    let discard = |state: &mut State, letter, after: &mut After| {
        state.discard_from_log(letter, reason, after);
        Ok(())
    };
    let told = |settled: &Settled| settled.say_discarded(reason);
    settle_all(engine, stores, &until_now(query), discard, told).await
}

/// Those that are dead letters now: one that is replayed may be one again before the last is.
fn until_now(query: &DeadLetterQuery) -> DeadLetterQuery {
    let (now, times) = (Timestamp::now(), query.dead_at.clone());
    let times = times.unwrap_or(Timestamp::from_micros(i64::MIN)..=now);
    query
        .clone()
        .dead_at(*times.start()..=now.min(*times.end()))
}

/// Settles all that `query` means, and tells of each once that is committed. Returns how many.
async fn settle_all(
    engine: &Engine,
    stores: &Stores,
    query: &DeadLetterQuery,
    settle: impl Fn(&mut State, DeadLetter, &mut After) -> Result<(), LetterError>,
    told: impl Fn(&Settled),
) -> Result<usize, LetterError> {
    let mut count = 0;
    loop {
        if engine.lifecycle.phase() != Phase::Running {
            return Err(LetterError::NotRunning);
        }
        let letters = list(engine, stores, query, PAGE).await?;
        if letters.is_empty() {
            return Ok(count);
        }
        let settled: Vec<_> = letters.iter().map(Settled::of).collect();
        let save = engine.step(|state, after| {
            for letter in letters {
                settle(state, letter, after)?;
            }
            Ok::<_, LetterError>(state.unsaved.next_save())
        })?;
        if !progress::committed(engine, save).await {
            return Err(LetterError::NotRunning);
        }
        settled.iter().for_each(&told);
        count += settled.len();
    }
}

impl State {
    /// Has a dead letter of the log delivered again once that is committed, alone on its aggregate.
    fn replay_from_log(
        &mut self,
        letter: DeadLetter,
        after: &mut After,
    ) -> Result<(), LetterError> {
        let subscribed = self.who_replays(&letter.subscription)?;
        let event = letter.event;
        let (Some(id), Some(recorded)) = (subscribed.id, event.recorded()) else {
            return Ok(());
        };
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return Err(LetterError::NotRunning);
        };
        // Counted with those of this run where it was given up in it.
        subscribed.count_replay(letter.dead_at >= self.made_at);
        let in_log = pipeline.leaves_to_log();
        let now = Timestamp::now();
        let waiting = WaitingDelivery {
            position: recorded.position,
            aggregate: event.aggregate().clone(),
            attempts: 0,
            first_attempt_at: now,
            due_at: now,
            last_error: letter.error,
            is_replay: true,
        };
        let replayed = DeliveryChange::Replayed(id, waiting.clone());
        self.unsaved.change([replayed], None);
        let save = self.unsaved.next_save();
        if !in_log {
            after.saver = true;
            if pipeline.room.fits(1) {
                self.replay_in_memory(event, subscribed, save, after);
            } else {
                self.replay_as_room_comes(&subscribed, waiting, after);
                after.dropped.push(Box::new((event, subscribed)));
            }
            return Ok(());
        }
        subscribed.steps.left.up();
        let through = pipeline.cursor.as_ref().map(|cursor| cursor.through);
        // It may have been given more, before others set the pipeline back.
        let through = through.max(self.subscriptions.joined_through(&subscribed));
        let mailboxes = &mut pipeline.mailboxes;
        let mailbox = mailboxes.mailbox(event.aggregate());
        mailboxes.block_from_now(mailbox, &subscribed, recorded, through.unwrap_or_default());
        let goes = mailboxes.replay_from_log(mailbox, &subscribed, &event);
        if let Some(blocked) = mailboxes.blocked(mailbox, &subscribed) {
            blocked.replays_from = save;
        }
        let due = goes.then(|| Due::now(mailbox, &subscribed));
        self.note_block(mailbox, &subscribed, due, after);
        after.dropped.push(Box::new((event, subscribed)));
        Ok(())
    }

    /// Has a dead letter delivered again once its event is read from the log, as room comes free: the
    /// pipeline is set back to it.
    fn replay_as_room_comes(
        &mut self,
        subscribed: &Arc<Subscribed>,
        waiting: WaitingDelivery,
        after: &mut After,
    ) {
        let id = subscribed.pipeline;
        let pipeline = self.pipelines.get_mut(id);
        if let Some(cursor) = pipeline.and_then(|it| it.cursor.as_mut()) {
            self.subscriptions.pass_over_through(id, cursor.through);
            cursor.through = cursor.through.min(waiting.position.previous());
            cursor.live = false;
        }
        self.subscriptions.leave_waiting(id, waiting);
        self.tell_who_is_behind(after);
    }

    /// Forgets a dead letter of the log; what is parked behind it goes on once that is committed.
    fn discard_from_log(&mut self, letter: DeadLetter, reason: &str, after: &mut After) {
        let DeadLetter {
            event,
            subscription,
            dead_at,
            ..
        } = letter;
        let Some(position) = event.position() else {
            return;
        };
        let named = self.subscriptions.named(&subscription).cloned();
        let discarded = DeliveryChange::Discarded {
            subscription,
            position,
            reason: reason.to_owned(),
        };
        self.unsaved.change([discarded], None);
        after.saver = true;
        if let Some(subscribed) = named {
            subscribed.count_discard(dead_at >= self.made_at);
            self.go_on_from_log(&event, &subscribed, after);
            after.dropped.push(Box::new(subscribed));
        }
        after.dropped.push(Box::new(event));
    }

    fn go_on_from_log(
        &mut self,
        event: &EventEnvelope,
        subscribed: &Arc<Subscribed>,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        let Some(mailbox) = mailboxes.known(event.aggregate()) else {
            return;
        };
        let goes = mailboxes.discard_from_log(mailbox, subscribed, event.id());
        let due = goes.then(|| Due::now(mailbox, subscribed));
        self.note_block(mailbox, subscribed, due, after);
    }
}
