//! Work that waits for a thread, first come first served, until the queue is closed.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// Work that waits for a thread.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
    /// How many threads wait for work.
    idle: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            closed: false,
            idle: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Adds work; a closed queue gives it back.
    pub(crate) fn push(&self, work: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(work);
        }
        state.waiting.push_back(work);
        let somebody_waits = state.idle > 0;
        drop(state);
        // To wake nobody takes a system call, too.
        if somebody_waits {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Waits for work and lets `pick` take of it; `None` when the queue is closed and empty.
    pub(crate) fn take<R>(&self, pick: impl FnOnce(&mut VecDeque<T>) -> R) -> Option<R> {
        let mut state = self.lock();
        let waits = |state: &mut State<T>| state.waiting.is_empty() && !state.closed;
        state.idle += 1;
        let mut state = self
            .changed
            .wait_while(state, waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        (!state.waiting.is_empty()).then(|| pick(&mut state.waiting))
    }

    /// Refuses further work; what waits is still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_queue_is_emptied_and_takes_nothing_more() {
        let queue = Queue::new();
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(2));
        assert_eq!(queue.take(VecDeque::pop_front), Some(Some(1)));
        assert_eq!(queue.take(VecDeque::pop_front), None);
    }
}
