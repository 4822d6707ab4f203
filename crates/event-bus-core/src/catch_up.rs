//! From the log to the mailboxes, in bounded pages, until the bus is live again (R4).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use domain_events::{EventEnvelope, Position, Timestamp};

use crate::{
    admission::Reservation,
    engine::{Engine, Stores},
    pipeline::{Pipeline, Wake},
};

/// How many events are read at a time.
const PAGE: usize = 512;

/// How long after a fault of the store its next use is tried.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// Reads the log whenever the bus is behind it, for ever.
pub(crate) async fn run(engine: Arc<Engine>, stores: Stores) {
    loop {
        let Some(through) = behind(&engine) else {
            engine.behind.notified().await;
            continue;
        };
        let fault = match stores.events.read_log(through, PAGE).await {
            Ok(page) if starts_after(through, &page) => {
                hand_over(&engine, page).await;
                continue;
            }
            Ok(_) => format!("position {} is missing", through.next()),
            Err(error) => error.to_string(),
        };
        log::error!("log not read, tried again in {AFTER_FAULT:?}: {fault}");
        tokio::time::sleep(AFTER_FAULT).await;
    }
}

fn starts_after(through: Position, page: &[EventEnvelope]) -> bool {
    page.first()
        .is_some_and(|event| event.position() == Some(through.next()))
}

/// Where to go on reading; `None` once there is nothing left to read, and the bus is live.
fn behind(engine: &Engine) -> Option<Position> {
    let mut pipeline = engine.lock();
    let cursor = pipeline.cursor.as_mut()?;
    if cursor.live {
        return None;
    }
    // Appends are announced in the order of the log, under this lock: nothing can come between.
    if cursor.through < cursor.head {
        return Some(cursor.through);
    }
    cursor.live = true;
    engine.live.store(true, Ordering::Release);
    drop(pipeline);
    engine.wake(Wake {
        quiet: true,
        ..Wake::default()
    });
    None
}

/// Hands a page over as room comes free.
async fn hand_over(engine: &Engine, page: Vec<EventEnvelope>) {
    let mut page = page.into_iter().peekable();
    while page.peek().is_some() {
        let mut room = engine.admission.reserve(1).await;
        let mut more = engine.admission.try_reserve_up_to(page.len() - 1);
        let mut wake = Wake::default();
        let mut pipeline = engine.lock();
        while let Some(event) = page.peek() {
            let is_next = pipeline.cursor.as_ref().is_some_and(|cursor| {
                event.position() == Some(cursor.through.next()) && cursor.through < cursor.head
            });
            if !is_next {
                // The cursor was set back while the page was read, or the event is committed and
                // not announced yet: its receipt is still on the way.
                drop(pipeline);
                return engine.wake(wake);
            }
            if !room.take() && !more.as_mut().is_some_and(Reservation::take) {
                break;
            }
            if let Some(event) = page.next() {
                take_up(&mut pipeline, event, &mut wake);
            }
        }
        drop(pipeline);
        engine.wake(wake);
    }
}

fn take_up(pipeline: &mut Pipeline, event: EventEnvelope, wake: &mut Wake) {
    pipeline.figures.taken_up();
    let since_recorded = event.recorded().map_or(Duration::ZERO, |recorded| {
        Timestamp::now().since(recorded.at)
    });
    let now = Instant::now();
    let accepted_at = now.checked_sub(since_recorded).unwrap_or(now);
    pipeline.accept(Arc::new(event), true, accepted_at, wake);
}
