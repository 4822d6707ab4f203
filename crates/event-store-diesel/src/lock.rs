//! The lock that keeps a store to one process (R6): a file beside it that says who has it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};

use domain_events::Timestamp;

use crate::{Holder, OpenError, failure};

/// How long our own process is given to finish closing the store.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

/// The lock of a store, held until dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
}

impl FileLock {
    /// Takes the lock of the store at `path`, waiting a little where this process has it.
    pub(crate) fn take(path: &Path) -> Result<Self, OpenError> {
        let deadline = Instant::now() + PATIENCE;
        let failed = |error| OpenError::Store {
            path: path.to_owned(),
            source: failure::file_error("the lock was not taken", error),
        };
        loop {
            let mut file = open(&lock_path(path)).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => return Self::sign(file).map_err(failed),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = read(&mut file);
            // Whoever has just taken the lock has not signed it yet.
            let may_change = holder.as_ref().is_none_or(|it| it.pid == process::id());
            if !may_change || Instant::now() >= deadline {
                let path = path.to_owned();
                return Err(OpenError::InUse { path, holder });
            }
            thread::sleep(PAUSE);
        }
    }

    fn sign(mut file: File) -> io::Result<Self> {
        let (pid, since) = (process::id(), Timestamp::now());
        let text = format!("pid: {pid}\nhost: {}\nsince: {since}\n", host());
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
        Ok(Self { file })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // The file stays: another process may be waiting for it under this name. The next holder
        // overwrites what it says, so a failure here does no harm.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path)
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    Some(Holder {
        pid: field("pid: ")?.parse().ok()?,
        host: field("host: ")?.to_owned(),
        since: field("since: ")?.parse().ok()?,
    })
}

/// The name of this machine, as far as it can be told without asking the C library.
fn host() -> String {
    let from_file = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .ok();
    let name = from_file
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok());
    let name = name.as_deref().map_or("", str::trim);
    match name.lines().next() {
        Some(name) => name.to_owned(),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r6_a_lock_is_signed_while_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let lock = FileLock::take(&path).unwrap();
        let holder = read(&mut open(&lock_path(&path)).unwrap()).unwrap();
        assert_eq!(holder.pid, process::id());
        assert!(!holder.host.is_empty());
        drop(lock);
        assert_eq!(read(&mut open(&lock_path(&path)).unwrap()), None);
    }

    #[test]
    fn l2_a_lock_that_this_process_is_giving_up_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let lock = FileLock::take(&path).unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(lock);
        });
        FileLock::take(&path).unwrap();
        closing.join().unwrap();
    }
}
