//! Telling those who wait how their requests ended: one by one, in the order of the log.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use crate::writer::{Fault, Request};

/// So many requests take longer to answer than it takes to wake another thread for them.
const MANY: usize = 16;

/// Requests that ended together, and how.
type Ended = (Vec<Box<dyn Request>>, Result<(), Fault>);

/// Answers requests one by one; held while an answer is given, so that no two overlap.
#[derive(Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<()>>);

impl Answers {
    pub(crate) fn give(&self, request: Box<dyn Request>, end: Result<(), Fault>) {
        let _one_by_one = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if catch_unwind(AssertUnwindSafe(|| request.answer(end))).is_err() {
            log::error!("whoever waited for the store's answer panicked on it");
        }
    }

    fn give_all(&self, (group, end): Ended) {
        for request in group {
            self.give(request, end.clone());
        }
    }
}

/// The writer's side: a few requests it answers itself; of many it leaves that to another thread,
/// and writes on meanwhile.
pub(crate) struct Answering {
    answers: Answers,
    ended: SyncSender<Ended>,
    unanswered: Arc<AtomicUsize>,
}

/// The other thread's side.
pub(crate) struct Answerer {
    answers: Answers,
    ended: Receiver<Ended>,
    /// How many groups were handed over and not answered yet.
    unanswered: Arc<AtomicUsize>,
}

impl Answering {
    pub(crate) fn new(answers: Answers) -> (Self, Answerer) {
        // While one group is answered, one may wait: no more, so that memory is bounded.
        let (sender, ended) = sync_channel(1);
        let unanswered = Arc::new(AtomicUsize::new(0));
        let answerer = Answerer {
            answers: answers.clone(),
            ended,
            unanswered: Arc::clone(&unanswered),
        };
        let answering = Self {
            answers,
            ended: sender,
            unanswered,
        };
        (answering, answerer)
    }

    pub(crate) fn tell(&self, group: Vec<Box<dyn Request>>, end: Result<(), Fault>) {
        if self.is_quick(group.len()) {
            return self.answers.give_all((group, end));
        }
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        if let Err(back) = self.ended.send((group, end)) {
            self.answers.give_all(back.0);
        }
    }

    /// Whether so many are a few. They may not overtake the many before them.
    fn is_quick(&self, requests: usize) -> bool {
        requests < MANY && self.unanswered.load(Ordering::Acquire) == 0
    }
}

impl Answerer {
    /// Answers until the writer has ended.
    pub(crate) fn run(self) {
        for ended in self.ended {
            self.answers.give_all(ended);
            self.unanswered.fetch_sub(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use diesel::QueryResult;

    use super::*;
    use crate::transaction::Transaction;

    /// What was answered, in order, with how many groups were unanswered meanwhile.
    type Told = Arc<Mutex<Vec<(&'static str, usize)>>>;

    struct Named(&'static str, Told, Arc<AtomicUsize>);

    impl Request for Named {
        fn apply(&mut self, _: &mut Transaction<'_>) -> QueryResult<()> {
            Ok(())
        }

        fn answer(self: Box<Self>, _: Result<(), Fault>) {
            let Self(name, told, unanswered) = *self;
            let told_now = (name, unanswered.load(Ordering::Relaxed));
            told.lock().unwrap().push(told_now);
        }
    }

    #[test]
    fn p3_a_few_are_not_answered_before_the_many_that_came_first() {
        let (answering, answerer) = Answering::new(Answers::default());
        let told = Told::default();
        let group = |name, size: usize| {
            let unanswered = &answering.unanswered;
            let request = || Named(name, Arc::clone(&told), Arc::clone(unanswered));
            (0..size)
                .map(|_| Box::new(request()) as Box<dyn Request>)
                .collect()
        };
        answering.tell(group("first", 1), Ok(()));
        assert_eq!(*told.lock().unwrap(), [("first", 0)]);
        answering.tell(group("many", MANY), Ok(()));
        assert!(!answering.is_quick(1));
        assert_eq!(told.lock().unwrap().len(), 1);
        let few = group("few", 1);
        std::thread::scope(|scope| {
            scope.spawn(|| answerer.run());
            while told.lock().unwrap().len() <= MANY {
                std::thread::yield_now();
            }
            answering.tell(few, Ok(()));
            drop(answering);
        });
        let told = told.lock().unwrap();
        // Until the last of the many is answered, none may go before it.
        assert_eq!(told[1..=MANY], [("many", 1); MANY]);
        assert_eq!(told[MANY + 1].0, "few");
    }
}
