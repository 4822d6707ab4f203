//! The threads of a store, and the order in which they end.

use std::{
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

/// The threads of a store.
#[derive(Default)]
pub(crate) struct Threads {
    writer: Mutex<Option<JoinHandle<()>>>,
    others: Arc<Others>,
}

impl Threads {
    /// Starts the thread that writes. When it has nothing more to do, it waits for the others, and
    /// only then lets go of what `write` returns.
    ///
    /// Its connection is to be the last to close the file: of two that close it at once, neither
    /// tidies the write-ahead log away.
    pub(crate) fn start_writer<T>(
        &self,
        write: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<()> {
        let others = Arc::clone(&self.others);
        let run = move || {
            let last = write();
            others.wait();
            drop(last);
        };
        *lock(&self.writer) = Some(spawn("event-store-writer", run)?);
        Ok(())
    }

    /// Starts another thread; an error once the store is closed.
    pub(crate) fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match &mut *lock(&self.others.0) {
            Running::Threads(threads) => {
                // One that has ended keeps its stack until somebody lets go of it.
                threads.retain(|thread| !thread.is_finished());
                threads.push(spawn(name, run)?);
            }
            Running::Ended => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        Ok(())
    }

    /// Waits until all have ended.
    pub(crate) fn wait(&self) {
        // Held throughout, so that a second caller returns no sooner than the first.
        let mut writer = lock(&self.writer);
        if let Some(writer) = writer.take() {
            join(writer);
        }
        self.others.wait();
    }
}

#[derive(Default)]
struct Others(Mutex<Running>);

enum Running {
    Threads(Vec<JoinHandle<()>>),
    Ended,
}

impl Default for Running {
    fn default() -> Self {
        Self::Threads(Vec::new())
    }
}

impl Others {
    fn wait(&self) {
        let running = mem::replace(&mut *lock(&self.0), Running::Ended);
        if let Running::Threads(threads) = running {
            threads.into_iter().for_each(join);
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        log::error!("a thread of the store panicked");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_has_ended_is_not_kept() {
        let threads = Threads::default();
        for _ in 0..100 {
            let (send, ended) = mpsc::channel::<()>();
            threads.start("short", move || drop(send)).unwrap();
            ended.recv().unwrap_err();
        }
        let (send, begun) = mpsc::channel();
        let (stop, until) = mpsc::channel::<()>();
        let run = move || {
            send.send(()).unwrap();
            until.recv().unwrap_err();
        };
        threads.start("long", run).unwrap();
        begun.recv().unwrap();
        match &*lock(&threads.others.0) {
            // The last of the others may not have ended altogether.
            Running::Threads(kept) => assert!(kept.len() < 100, "{} are kept", kept.len()),
            Running::Ended => panic!("ended"),
        }
        drop(stop);
        threads.wait();
    }
}
