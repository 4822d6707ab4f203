//! A value that one side gives once and the other awaits, under any runtime.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

enum State<T> {
    Open(Option<Waker>),
    Kept(T),
    Broken,
}

type Shared<T> = Arc<Mutex<State<T>>>;

/// The giving and the awaiting side of a value to come.
pub fn promise<T>() -> (Promise<T>, Awaited<T>) {
    let shared = Arc::new(Mutex::new(State::Open(None)));
    (Promise(Arc::clone(&shared)), Awaited(shared))
}

/// The side that gives the value; dropped without it, the promise is broken.
pub struct Promise<T>(Shared<T>);

impl<T> Promise<T> {
    /// Gives the value.
    pub fn keep(self, value: T) {
        settle(&self.0, State::Kept(value));
    }
}

impl<T> fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Promise")
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        settle(&self.0, State::Broken);
    }
}

fn settle<T>(shared: &Shared<T>, outcome: State<T>) {
    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if let State::Open(waker) = &mut *state {
        let waker = waker.take();
        *state = outcome;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The side that awaits the value: `None` where the promise is broken.
#[must_use = "nothing is awaited by itself"]
pub struct Awaited<T>(Shared<T>);

impl<T> fmt::Debug for Awaited<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Awaited")
    }
}

impl<T> Future for Awaited<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(waker) = &mut *state {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Broken) {
            State::Kept(value) => Poll::Ready(Some(value)),
            State::Open(_) | State::Broken => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    fn poll<T>(awaited: &mut Awaited<T>) -> Poll<Option<T>> {
        let waker = Waker::from(Arc::new(Nobody));
        Pin::new(awaited).poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn a_promise_is_kept_once_or_broken() {
        let (promise_, mut awaited) = promise();
        assert_eq!(poll(&mut awaited), Poll::Pending);
        promise_.keep(7);
        assert_eq!(poll(&mut awaited), Poll::Ready(Some(7)));

        let (promise_, mut awaited) = promise::<()>();
        drop(promise_);
        assert_eq!(poll(&mut awaited), Poll::Ready(None));
    }
}
