//! Work that waits for a thread, first come first served, until the queue is closed.

use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
};

/// Work that waits for a thread.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
    /// Threads that wait for work. The last to have come is the first to get some: what it has read
    /// from the file is more likely to be still at hand.
    idle: Vec<Thread>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            closed: false,
            idle: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Adds work; a closed queue gives it back.
    pub(crate) fn push(&self, work: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(work);
        }
        state.waiting.push_back(work);
        let idle = state.idle.pop();
        drop(state);
        if let Some(idle) = idle {
            idle.unpark();
        }
        Ok(())
    }

    /// Waits for work and lets `pick` take of it; `None` when the queue is closed and empty.
    pub(crate) fn take<R>(&self, pick: impl FnOnce(&mut VecDeque<T>) -> R) -> Option<R> {
        loop {
            let mut state = self.lock();
            if !state.waiting.is_empty() {
                return Some(pick(&mut state.waiting));
            }
            if state.closed {
                return None;
            }
            let me = thread::current();
            // It may have been woken by something else, and still be among them.
            state.idle.retain(|idle| idle.id() != me.id());
            state.idle.push(me);
            drop(state);
            thread::park();
        }
    }

    /// Refuses further work; what waits is still done.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let idle = mem::take(&mut state.idle);
        drop(state);
        idle.iter().for_each(Thread::unpark);
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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

    #[test]
    fn who_waits_last_is_the_first_to_get_work() {
        let queue = Queue::new();
        let (send, took) = mpsc::channel();
        let mut all = Vec::new();
        thread::scope(|scope| {
            for number in 0..3 {
                let send = send.clone();
                let queue = &queue;
                scope.spawn(move || {
                    while let Some(work) = queue.take(VecDeque::pop_front) {
                        send.send((number, work)).unwrap();
                    }
                });
                while queue.lock().idle.len() <= number {
                    thread::yield_now();
                }
            }
            for work in 0..10 {
                queue.push(work).unwrap();
                all.push(took.recv().unwrap());
                while queue.lock().idle.len() < 3 {
                    thread::yield_now();
                }
            }
            // Before anything is checked: a panic would wait for the threads, and they for work.
            queue.close();
        });
        assert!(all.into_iter().eq((0..10).map(|work| (2, Some(work)))));
    }
}
