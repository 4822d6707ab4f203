//! Word that an attempt is given up, for whoever works on it still.

use std::{
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

/// Whether an attempt is given up: it ran past its time-out, or a stop has cut it off. A cheap clone.
///
/// What is done from then on counts no more. An async handler is dropped at that moment, so this is
/// for blocking handlers, and for tasks that a handler has spawned.
#[derive(Clone, Default)]
pub struct Cancellation(Arc<Shared>);

#[derive(Default)]
struct Shared {
    is_cancelled: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

impl Cancellation {
    /// Says that the attempt is given up; for buses.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        let waiters = std::mem::take(&mut *self.waiters());
        for waiter in waiters {
            // A waker is anybody's code: its panic is not the bus's, nor is that of the panic's drop.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waiter.wake())) {
                std::mem::forget(panic);
            }
        }
    }

    /// Whether the attempt is given up.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// Waits until the attempt is given up, which may be never.
    pub async fn cancelled(&self) {
        poll_fn(|cx| {
            if !self.is_cancelled() {
                let mut waiters = self.waiters();
                if !waiters.iter().any(|other| other.will_wake(cx.waker())) {
                    waiters.push(cx.waker().clone());
                }
            }
            // It may have been cancelled before the waker was in its place.
            if self.is_cancelled() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Makes it one of another attempt, keeping its memory where nobody else holds it; for buses.
    pub fn renew(&mut self) {
        match Arc::get_mut(&mut self.0) {
            Some(shared) => {
                *shared.is_cancelled.get_mut() = false;
                let waiters = shared.waiters.get_mut();
                waiters.unwrap_or_else(PoisonError::into_inner).clear();
            }
            None => *self = Self::default(),
        }
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.0
            .waiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancellation")
            .field(&self.is_cancelled())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::AtomicUsize,
        task::{Context, Wake},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_is_told_once_that_the_attempt_is_given_up() {
        let (cancellation, count) = (Cancellation::default(), Arc::new(Count::default()));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut waits = pin!(cancellation.cancelled());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        cancellation.clone().cancel();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(waits.poll(&mut cx).is_ready());
    }

    #[test]
    fn what_somebody_holds_is_never_renewed() {
        let mut cancellation = Cancellation::default();
        let held = cancellation.clone();
        cancellation.renew();
        cancellation.cancel();
        assert!(!held.is_cancelled());
        cancellation.renew();
        assert!(!cancellation.is_cancelled());
    }
}
