//! Requests that a store does not take: each is told why, and on no thread of its caller.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use domain_events::StoreError;

use crate::{
    answering::Answers,
    writer::{Fault, Request},
};

/// Requests that are refused.
#[derive(Clone)]
pub(crate) struct RefusedRequests {
    state: Arc<Mutex<State>>,
    answers: Answers,
    /// Why.
    refusal: fn() -> StoreError,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Box<dyn Request>>,
    is_answering: bool,
}

impl RefusedRequests {
    pub(crate) fn new(answers: Answers, refusal: fn() -> StoreError) -> Self {
        Self {
            state: Arc::default(),
            answers,
            refusal,
        }
    }

    /// Answers `request` soon, after those that came before it.
    ///
    /// On another thread, because the caller may hold what the answer needs; it ends when all are
    /// answered, and holds nothing of the store.
    pub(crate) fn refuse(&self, request: Box<dyn Request>) {
        let mut state = self.lock();
        state.waiting.push_back(request);
        if std::mem::replace(&mut state.is_answering, true) {
            return;
        }
        drop(state);
        let refused = self.clone();
        let answering = thread::Builder::new()
            .name("event-store-refuses".into())
            .spawn(move || refused.answer_all());
        if answering.is_err() {
            // Without another thread it is better to answer here than never.
            self.answer_all();
        }
    }

    fn answer_all(&self) {
        while let Some(request) = self.next() {
            let end = Err(Fault::NotCommitted((self.refusal)()));
            self.answers.give(request, end);
        }
    }

    fn next(&self) -> Option<Box<dyn Request>> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        state.is_answering = next.is_some();
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
